"""Cases 21 to 40: uploads."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.stocknginx import worker_user
from tests.http.targets import CAFS, OURS, PATIENCE_S, Area
from tests.http.wire import Connection, http_date, pieces
from tests.mount.syscalls import as_user

WHEN = 1_700_000_000
KEY = "ab/cd/abcd-1"
MIB = 1 << 20


@contextlib.contextmanager
def half_a_put(area: Area, url: str, data: bytes, sent: int) -> Iterator[Connection]:
    """A PUT of which the first *sent* bytes were sent when this is entered."""
    with area.target.admin() as other:
        other.begin("PUT", url, framing={"Content-Length": str(len(data))}).send(data[:sent])
        yield other


def finish(connection: Connection, rest: bytes) -> int:
    """Send what is missing and return the status."""
    connection.socket.sendall(rest)
    response = connection.answer()
    response.read()
    return response.status


def put_at_once(area: Area, puts: list[tuple[str, bytes]]) -> list[int]:
    """The statuses of PUTs, each by a client of its own, that begin at the same moment."""
    barrier = threading.Barrier(len(puts))

    def put(url: str, body: bytes) -> int:
        with area.target.admin() as client:
            barrier.wait(30)
            return client.request("PUT", url, body).status

    with ThreadPoolExecutor(len(puts)) as threads:
        return [each.result() for each in [threads.submit(put, *one) for one in puts]]


def test_case_021_new_key(area: Area) -> None:
    reply = area.http.request("PUT", area.url(), b"content")
    assert reply.status == 201
    assert reply["Location"] == area.target.ports.internal.base + area.url()
    assert (reply["Content-Length"], reply.body) == ("0", b"")
    user = worker_user()
    for name, mode in (("", 0o700), ("ab", 0o700), ("ab/cd", 0o700), (KEY, 0o600)):
        status = area.file(name).stat()
        assert status.st_mode & 0o7777 == mode, name
        assert (status.st_uid, status.st_gid) == (user.pw_uid, user.pw_gid), name
    assert area.file().read_bytes() == b"content"


def test_case_022_existing_key(area: Area) -> None:
    url = area.put(data=b"old", mtime=WHEN)
    old = area.http.request("HEAD", url)["ETag"]
    reply = area.http.request("PUT", url, b"newer", {"Date": http_date(WHEN + 1)})
    assert (reply.status, reply.body) == (204, b"")
    new = area.http.request("GET", url)
    assert new.body == b"newer"
    assert new["ETag"] != old


def test_case_023_date_becomes_mtime(area: Area) -> None:
    for when in (0, WHEN, 4_102_444_800):
        url = area.put(mtime=when)
        assert area.http.request("HEAD", url)["Last-Modified"] == http_date(when)
        assert area.file().stat().st_mtime_ns == when * 10**9
    before = int(time.time())
    reply = area.http.request("PUT", area.url("undated"), b"x")
    assert reply.status == 201
    assert before - 1 <= area.file("undated").stat().st_mtime <= time.time() + 1


def test_case_024_read_your_write(area: Area) -> None:
    with area.target.admin() as other:
        for number in range(1, 30):
            data = b"x" * number
            key = f"ab/cd/{number % 10}"
            area.put(key, data)
            assert other.request("HEAD", area.url(key))["Content-Length"] == str(number)
            assert other.request("GET", area.url(key)).body == data
            assert area.file(key).read_bytes() == data


def test_case_025_a_first_put_is_invisible_until_it_is_whole(area: Area) -> None:
    data = os.urandom(400_000)
    with half_a_put(area, area.url(), data, 200_000) as other:
        assert area.http.request("HEAD", area.url()).status == 404
        assert not area.file().exists()
        assert finish(other, data[200_000:]) == 201
    assert area.http.request("GET", area.url()).body == data


def test_case_025_an_overwrite_is_invisible_until_it_is_whole(area: Area) -> None:
    url, new = area.put(data=b"old"), os.urandom(400_000)
    with half_a_put(area, url, new, 200_000) as other:
        assert area.http.request("GET", url).body == b"old"
        assert area.file().read_bytes() == b"old"
        assert finish(other, new[200_000:]) == 204
    assert area.http.request("GET", url).body == new


def test_case_026_a_reader_keeps_what_it_began_with(area: Area) -> None:
    old, new = os.urandom(8 * MIB), os.urandom(MIB)
    url = area.put(data=old)
    with area.target.admin() as reader:
        reader.begin("GET", url)
        response = reader.answer()
        begun = response.read(100_000)
        area.put(data=new)
        assert area.http.request("GET", url).body == new
        assert begun + response.read() == old
    assert area.http.request("GET", url).body == new


@pytest.mark.parametrize("present", [False, True])
def test_case_027_an_aborted_body_leaves_nothing(area: Area, present: bool) -> None:
    if present:
        area.put(data=b"old")
    area.put("other")
    before = area.names()
    data = os.urandom(300_000)
    for sent in (0, 1, 70_000, 299_999):
        with half_a_put(area, area.url(), data, sent) as other:
            other.socket.shutdown(socket.SHUT_RDWR)
    # The server notices in its own time; what it has at hand is finished before the next answer.
    uploads = area.target.root / "tmp" / "uploads"
    if uploads.exists():
        wait_until("no upload is left", lambda: not any(p.is_file() for p in uploads.rglob("*")))
    reply = area.http.request("GET", area.url())
    assert reply.status == (200 if present else 404)
    assert not present or reply.body == b"old"
    assert area.names() == before


def test_case_028_several_at_once_to_one_key(area: Area) -> None:
    for number in range(5):
        bodies = [os.urandom(300_000 + each) for each in range(3)]
        url = area.url(f"ab/cd/{number}")
        assert set(put_at_once(area, [(url, body) for body in bodies])) <= {201, 204}
        assert area.http.request("GET", url).body in bodies


def test_case_029_several_at_once_below_a_new_partition(area: Area) -> None:
    for number in range(5):
        urls = [area.url(f"{number}a/cd/{each}") for each in range(3)]
        assert put_at_once(area, [(url, url.encode()) for url in urls]) == [201, 201, 201]
        for url in urls:
            assert area.http.request("GET", url).body == url.encode()


def test_case_030_where_no_blob_can_be(area: Area) -> None:
    area.put()
    before = area.names()
    for key in ("ab/cd", "ab/cd/", "ab/cd/new/", "new/"):
        assert area.http.request("PUT", area.url(key), b"x").status == 409, key
    assert area.http.request("PUT", area.url(f"{KEY}/below"), b"x").status == 500
    assert area.http.request("PUT", area.url(f"{KEY}/far/below"), b"x").status == 500
    assert area.http.request("GET", area.url()).body == b"content"
    assert area.names() == before


def test_case_031_ways_to_say_how_long_a_body_is(area: Area) -> None:
    ranged = {"Content-Range": "bytes 0-6/7"}
    assert area.http.request("PUT", area.url("ranged"), b"content", ranged).status == 501
    assert area.http.request("PUT", area.url("unsaid"), None).status in (411, 500)
    area.http.close()
    data = os.urandom(200_000)
    chunked = area.http.request("PUT", area.url("chunked"), pieces(data, 7001))
    assert chunked.status == 201
    assert area.http.request("GET", area.url("chunked")).body == data
    for key in ("ranged", "unsaid"):
        assert area.http.request("HEAD", area.url(key)).status == 404


def test_case_031_expect_100_continue(area: Area) -> None:
    with area.target.admin() as other:
        headers = {"Expect": "100-continue", "Content-Length": "7"}
        other.begin("PUT", area.url(), headers)
        assert other.socket.recv(25).startswith(b"HTTP/1.1 100")
        assert finish(other, b"content") == 201
    assert area.http.request("GET", area.url()).body == b"content"


def test_case_031_preconditions_of_a_put_are_ignored(area: Area) -> None:
    url = area.put()
    for condition in ({"If-None-Match": "*"}, {"If-Match": '"other"'}):
        assert area.http.request("PUT", url, b"again", condition).status == 204


def test_case_032_empty_blobs(area: Area) -> None:
    for status in (201, 204):
        assert area.http.request("PUT", area.url(), b"").status == status
        assert area.file().stat().st_size == 0


def test_case_033_a_large_put_stalls_nobody(area: Area) -> None:
    _large_put(area, 24 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.on(
    *OURS, "stock-inside", why="nginx copies its temporary file in one go, and answers nobody else"
)
def test_case_033_a_put_of_5_gb(area: Area) -> None:
    # A client as fast as nginx's writing never lets its worker go: a GET that has the same
    # worker waits for all of the body. So the reader goes past nginx.
    _large_put(area, 5 * 1024 * MIB, read_files=area.target.name == "stock-inside")


def _large_put(area: Area, size: int, read_files: bool = False) -> None:
    """Upload *size* bytes while a small blob is read over and over, and neither waits long."""
    answer_within_s, stall_s = 120, 10
    small = area.put("small", os.urandom(10_000))
    block = os.urandom(MIB)
    done = threading.Event()
    slowest = [0.0]

    def read_on() -> None:
        with area.target.admin() as other:
            while not done.is_set():
                began = time.monotonic()
                if read_files:
                    data = area.file("small").read_bytes()
                else:
                    data = other.request("GET", small).body
                assert len(data) == 10_000
                slowest[0] = max(slowest[0], time.monotonic() - began)

    patient = area.target.admin(timeout_s=PATIENCE_S)
    with ThreadPoolExecutor(2) as threads, patient as writer:
        writer.headers["Content-Length"] = str(size)
        readers = [threads.submit(read_on) for _ in range(2)]
        try:
            connection = writer.begin("PUT", area.url())
            for number in range(size // MIB):
                connection.send(number.to_bytes(8, "little") + block[8:])
            sent = time.monotonic()
            response = writer.answer()
            assert (response.status, response.read()) == (201, b"")
            assert time.monotonic() - sent < answer_within_s
        finally:
            done.set()
        for reader in readers:
            reader.result()
    assert slowest[0] < stall_s
    assert area.http.request("HEAD", area.url())["Content-Length"] == str(size)
    last = area.http.request("GET", area.url(), None, {"Range": f"bytes=-{MIB}"})
    assert last.body == (size // MIB - 1).to_bytes(8, "little") + block[8:]


def test_case_034_names(area: Area) -> None:
    area.put("x" * 244)
    assert area.http.request("GET", area.url("x" * 244)).body == b"content"
    for spelled, name in (
        ("a%20b", "a b"),
        ("a+b", "a+b"),
        ("%C3%A9t%C3%A9", "été"),
        ("q%3Fs%23h", "q?s#h"),
        ("%25", "%"),
        ("%22%26%3C%3E", '"&<>'),
        ("%E6%97%A5", "日"),
    ):
        reply = area.http.request("PUT", area.url(f"names/{spelled}"), name.encode())
        assert reply.status == 201, name
        assert reply["Location"].isascii()
        assert area.file(f"names/{name}").read_bytes() == name.encode()
        assert area.http.request("GET", area.url(f"names/{spelled}")).body == name.encode()
    raw = area.http.request("PUT", area.url("names/%ff%fe"), b"not UTF-8")
    assert raw.status == 201
    assert b"\xff\xfe" in os.listdir(os.fsencode(area.file("names")))
    assert area.http.request("GET", area.url("names/%ff%fe")).body == b"not UTF-8"


def test_case_034_a_name_too_long_leaves_nothing(area: Area) -> None:
    area.put()
    before = area.names()
    for key in ("x" * 256, "new/" + "x" * 300):
        assert 400 <= area.http.request("PUT", area.url(key), b"x").status < 600
    assert [name for name in area.names() if name != "new/"] == before
    # With its temporary name beside it 255 bytes are too many for the reference.
    reply = area.http.request("PUT", area.url("y" * 255), b"x")
    found = area.http.request("HEAD", area.url("y" * 255)).status
    assert (reply.status < 300) == (found == 200)


def test_case_036_nine_times_is_as_once(area: Area) -> None:
    data = os.urandom(200_000)
    for _ in range(9):
        url = area.put(data=data, mtime=WHEN)
        reply = area.http.request("GET", url)
        assert (reply.body, reply["Last-Modified"]) == (data, http_date(WHEN))
    assert area.names() == ["ab/", "ab/cd/", KEY]


@pytest.mark.on(*CAFS, why="a plain directory stores everything again")
def test_case_037_known_content_takes_no_room(area: Area) -> None:
    data = os.urandom(4 * MIB)
    area.put("one", data)
    stored = area.target.stored_bytes()
    assert area.http.request("PUT", area.url("two"), data).status == 201
    # What other tests left may be swept meanwhile.
    assert area.target.stored_bytes() < stored + MIB
    assert area.http.request("GET", area.url("two")).body == data


def test_case_039_the_calls_of_a_copy_in_place(area: Area) -> None:
    """What nginx does with a body on another disk, call by call, as its user."""
    area.put("before")
    target = area.file("ab/cd/blob")
    data = os.urandom(300_000)

    def calls() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.stat(target)
        os.makedirs(target.parent, 0o700, exist_ok=True)
        partial = target.with_name("blob.0000000001")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for piece in pieces(data, 65_536):
            os.write(fd, piece)
        os.utime(fd, (WHEN, WHEN))
        os.close(fd)
        os.rename(partial, target)

    as_user(worker_user().pw_uid, calls, gid=worker_user().pw_gid)
    reply = area.http.request("GET", area.url("ab/cd/blob"))
    assert (reply.body, reply["Last-Modified"]) == (data, http_date(WHEN))
    assert os.listdir(target.parent) == ["blob"]
    assert target.stat().st_mtime_ns == WHEN * 10**9


def test_case_040_rename_within_the_tree_replaces_at_once(area: Area) -> None:
    old, new = os.urandom(8 * MIB), os.urandom(200_000)
    url = area.put(data=old)
    temporary = area.file("0000000002")
    temporary.write_bytes(new)
    temporary.chmod(0o644)
    with area.target.admin() as reader:
        reader.begin("GET", url)
        response = reader.answer()
        begun = response.read(10_000)
        temporary.rename(area.file())
        assert area.http.request("GET", url).body == new
        assert begun + response.read() == old


def test_a_body_shorter_than_said_is_an_abort(area: Area) -> None:
    with area.target.admin() as other:
        other.begin("PUT", area.url(), framing={"Content-Length": "100"}).send(b"x" * 50)
        other.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(http.client.HTTPException, ssl.SSLError, OSError):
            assert other.answer().status >= 400
    assert area.http.request("HEAD", area.url()).status == 404
