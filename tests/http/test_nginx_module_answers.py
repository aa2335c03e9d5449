"""The module's answers are those of nginx's static module for the same tree through the mount."""

from __future__ import annotations

import os
import random
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Final

import pytest

from tests.http.moduleserver import HANDED_OVER, Answer, ModuleServer, receive_all, serving

pytestmark = pytest.mark.timeout(120)

NOISE: Final = random.Random(5).randbytes(700_000)
TEXT: Final = b"".join(b"line %d of a text that can be compressed\n" % n for n in range(20_000))

BETWEEN: Final = """
location = /between {
  addition_types *;
  add_before_body /cafs/cc-x/empty;
  add_after_body /cafs/cc-x/small;
  return 200 "between ";
}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ModuleServer]:
    with serving(more=BETWEEN) as made:
        made.write("cc-x/ab/cd/abcd-1", NOISE)
        made.write("cc-x/text.txt", TEXT)
        made.write("cc-x/small", b"seven b")
        made.write("cc-x/empty", b"")
        made.write("cc-x/app.tar.gz", NOISE[:1000])
        made.write("cc-x/a name+with %, & and \u00fc", b"odd")
        hole = made.mount.root / "cc-x" / "hole"
        with hole.open("wb") as file:
            file.write(b"begin")
            file.seek(3_000_000)
            file.write(b"end")
        os.utime(made.mount.root / "cc-x" / "small", ns=(1, 1_700_000_000_999_999_999))
        os.utime(made.mount.root / "cc-x" / "app.tar.gz", (5, -5))
        os.mkfifo(made.mount.root / "cc-x" / "fifo")
        (made.mount.root / "cc-x" / "link").symlink_to("ab/../ab/cd/abcd-1")
        (made.mount.root / "cc-x" / "round").symlink_to("round")
        made.sync()
        yield made


def same(server: ModuleServer, path: str, method: str, headers: Mapping[str, str]) -> Answer:
    """Ask both ways, in the clear and over TLS, verified and by sendfile; all must be the same."""
    expected = None
    for scheme in ("http", "https"):
        for prefix in ("mount", "cafs", "cached", "fast"):
            if prefix != "mount":
                # Reading through the mount may have changed the time of the last read.
                server.settle(f"/{prefix}/{path}", method)
            got = _normal(server.ask(f"/{prefix}/{path}", method, headers, scheme), prefix)
            expected = expected or got
            if scheme == "http" or got.status != 301:
                assert got == expected, (scheme, prefix, path, headers)
    assert expected is not None
    return expected


def _normal(answer: Answer, prefix: str) -> Answer:
    """Without the location's name and the number in a multipart boundary."""

    def plain(text: str) -> str:
        return re.sub(r"\d{20}", "BOUNDARY", text.replace(f"/{prefix}/", "/P/"))

    headers = tuple((name, plain(value)) for name, value in answer.headers)
    return Answer(answer.status, headers, re.sub(rb"--\d{20}", b"--BOUNDARY", answer.body))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("cc-x/ab/cd/abcd-1", 200),
        ("cc-x/text.txt", 200),
        ("cc-x/small", 200),
        ("cc-x/empty", 200),
        ("cc-x/app.tar.gz", 200),
        ("cc-x/hole", 200),
        ("cc-x/a%20name+with%20%25,%20&%20and%20%C3%BC", 200),
        ("cc-x/link", 200),
        ("cc-x/small?", 200),
        ("cc-x/small?x=1", 200),
        ("cc-x//ab/./cd/../cd/%61bcd-1", 200),
        ("cc-x", 301),
        ("cc-x?a=b", 301),
        ("cc-x/", 403),
        ("", 403),
        ("cc-x/round", 403),
        ("cc-x/none", 404),
        ("none/none/none", 404),
        ("cc-x/small/", 404),
        ("cc-x/small/x", 404),
        ("cc-x/fifo", 404),
        ("x" * 300, 404),
        ("CC-X/small", 404),
    ],
)
def test_paths(server: ModuleServer, path: str, status: int, method: str) -> None:
    assert same(server, path, method, {}).status == status


@pytest.mark.parametrize("value", ["E", "W/E", '"a", E', "*", '"x"'])
def test_if_none_match(server: ModuleServer, value: str) -> None:
    # A read through the mount by a test before this one may still be pending.
    server.settle("/cafs/cc-x/small", "HEAD")
    headers = dict(server.ask("/cafs/cc-x/small", "HEAD").headers)
    unchanged = value != '"x"'
    sent = {"If-None-Match": value.replace("E", headers["ETag"])}
    assert same(server, "cc-x/small", "GET", sent).status == (304 if unchanged else 200)
    both = {**sent, "If-Modified-Since": headers["Last-Modified"]}
    assert same(server, "cc-x/small", "GET", both).status == (304 if unchanged else 200)
    other = {**sent, "If-Modified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"}
    assert same(server, "cc-x/ab/cd/abcd-1", "GET", other).status == 200


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("bytes=10-19", 206),
        ("bytes=0-", 206),
        ("bytes=-5", 206),
        ("bytes=699999-", 206),
        ("bytes=250000-530000", 206),
        ("bytes=0-1,5-6", 206),
        ("bytes=600000-600100, 3-4, -1", 206),
        ("bytes=1000-300000,3-4,500000-", 206),
        ("bytes=0-9999999", 206),
        ("bytes=700000-", 416),
        ("bytes=5-2", 416),
        ("bytes=x", 416),
        ("bytes=0-600000,0-600000", 200),
        ("lines=1-2", 200),
    ],
)
@pytest.mark.parametrize("path", ["cc-x/ab/cd/abcd-1", "cc-x/link"])
def test_ranges(server: ModuleServer, path: str, value: str, status: int) -> None:
    assert same(server, path, "GET", {"Range": value}).status == status


@pytest.mark.parametrize(
    "value", ["bytes=100-300000,7-9,800000-", "bytes=-17", "bytes=65530-65540"]
)
@pytest.mark.parametrize("path", ["cc-x/text.txt", "cc-x/hole"])
def test_ranges_of_what_is_not_stored_as_it_is(server: ModuleServer, path: str, value: str) -> None:
    assert same(server, path, "GET", {"Range": value}).status == 206


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Range": "bytes=1-2", "If-Range": '"x"'}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"If-Unmodified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"}, 412),
        ({"If-Modified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"}, 200),
    ],
)
def test_other_conditions(server: ModuleServer, headers: dict[str, str], status: int) -> None:
    assert same(server, "cc-x/ab/cd/abcd-1", "GET", headers).status == status


def test_what_leaves_the_tree_is_forbidden(server: ModuleServer) -> None:
    for name, target in (("out", "/etc/hostname"), ("up", "../../etc/hostname")):
        (server.mount.root / name).symlink_to(target)
    server.sync()
    assert server.settle("/cafs/out") == 403
    assert server.settle("/cafs/up") == 403


@pytest.mark.parametrize("condition", ["", "If-None-Match", "If-Modified-Since"])
def test_answers_of_subrequests(server: ModuleServer, condition: str) -> None:
    """They have all of their body, whatever the condition, and none may be empty in nginx's way."""
    server.settle("/cafs/cc-x/empty", "GET")
    server.settle("/cafs/cc-x/small", "GET")
    known = dict(server.ask("/cafs/cc-x/small").headers)
    values = {"If-None-Match": known["ETag"], "If-Modified-Since": known["Last-Modified"]}
    answer = server.ask("/between", "GET", {condition: values[condition]} if condition else {})
    assert (answer.status, answer.body) == (200, b"between seven b")
    # To who knows no chunks an empty buffer would go as it is.
    with server.endpoints["http"].connect() as old:
        old.sendall(b"GET /between HTTP/1.0\r\nHost: localhost\r\n\r\n")
        got, _ = receive_all(old)
    assert got.partition(b"\r\n\r\n")[2] == b"between seven b"
    assert "zero size buf" not in server.nginx.log_text()


def test_a_directory_s_name_cannot_give_headers(server: ModuleServer) -> None:
    (server.mount.root / "cc-x" / "two\r\nX-Made-Up: 1").mkdir()
    server.sync()
    path = "/cafs/cc-x/two%0D%0AX-Made-Up:%201"
    assert server.settle(path) == 301
    headers = dict(server.ask(path).headers)
    assert "X-Made-Up" not in headers
    assert headers["Location"].endswith(f"{path}/")


def test_other_methods_are_the_daemon_s(server: ModuleServer) -> None:
    assert server.status("/cafs/cc-x/small", "DELETE") == HANDED_OVER
    assert server.status("/alone/cc-x/small", "DELETE") == 405


def test_a_missing_key_costs_no_line_in_the_error_log(server: ModuleServer) -> None:
    before = server.nginx.log_text()
    for number in range(20):
        assert server.status(f"/cafs/cc-x/none-{number}") == 404
    assert server.nginx.log_text() == before


def test_a_thousand_requests_on_one_connection(server: ModuleServer) -> None:
    for name in ("small", "none"):
        server.settle(f"/cafs/cc-x/{name}")
    handed_over = 0
    connection = server.begin("/cafs/cc-x/small", "HEAD")
    closed = 0
    for number in range(1001):
        response = connection.getresponse()
        response.read()
        if response.status == HANDED_OVER:
            handed_over += 1  # the digests of what was written were committed just now
        else:
            assert response.status == (200 if number % 2 == 0 else 404)
        if response.will_close:
            closed += 1
            connection.close()
            connection = server.begin("/cafs/cc-x/none" if number % 2 == 0 else "/cafs/cc-x/small")
        else:
            connection.putrequest("HEAD", f"/cafs/cc-x/{'none' if number % 2 == 0 else 'small'}")
            connection.endheaders()
    connection.close()
    assert closed <= 1
    assert handed_over < 500


def test_modes_count_for_the_worker_s_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with serving(user="www-data") as server:
        for file in [server.mount.store, *server.mount.store.rglob("*")]:
            if not stat.S_ISSOCK(file.lstat().st_mode):
                file.chmod(0o777 if file.is_dir() else 0o666)
        server.write("open/file", b"x").chmod(0o644)
        server.write("open/mine", b"x").chmod(0o600)
        server.write("shut/file", b"x").parent.chmod(0o700)
        server.write("deaf/file", b"x").parent.chmod(0o711)
        server.sync()
        for pack in (server.mount.store / "packs").iterdir():
            pack.chmod(0o666)
        expected = {"open/file": 200, "open/mine": 403, "shut/file": 403, "shut/none": 403}
        expected |= {"deaf/file": 200, "deaf": 403, "open": 301}
        for path, status in expected.items():
            assert server.status(f"/mount/{path}") == status, path
            assert server.settle(f"/cafs/{path}") == status, path
        os.chown(server.mount.root / "open" / "mine", 33, 0)
        server.sync()
        assert server.settle("/cafs/open/mine") == 200
        os.setxattr(
            server.mount.root / "open" / "file",
            "system.posix_acl_access",
            bytes.fromhex("0200000001000600ffffffff0200040021000000")
            + bytes.fromhex("04000400ffffffff10000400ffffffff20000000ffffffff"),
        )
        server.sync()
        assert server.status("/cafs/open/file") == HANDED_OVER
