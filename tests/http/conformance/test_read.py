"""Cases 1 to 20: existence checks and downloads."""

from __future__ import annotations

import os

import pytest

from tests.http.stocknginx import PASSWORD, USER
from tests.http.targets import CAFS, OURS, Area, Target, mirror
from tests.http.wire import Reply, basic, http_date

WHEN = 1_700_000_000
KEY = "ab/cd/abcd-1"


def etag(mtime: int, size: int) -> str:
    return f'"{mtime:x}-{size:x}"'


def test_case_001_head_after_put(area: Area) -> None:
    area.put(data=bytes(100_000), mtime=WHEN)
    reply = area.http.request("HEAD", area.url())
    assert reply.status == 200
    assert reply["Content-Length"] == "100000"
    assert reply["ETag"] == '"6553f100-186a0"' == etag(WHEN, 100_000)
    assert reply["Last-Modified"] == http_date(WHEN)
    assert reply["Accept-Ranges"] == "bytes"
    assert reply["Content-Type"] == "text/html"
    assert reply.body == b""


@pytest.mark.on(*OURS, why="Debian's nginx has no way to leave the header out")
def test_case_001_no_server_header(area: Area) -> None:
    area.put()
    for method in ("HEAD", "GET", "PROPFIND", "DELETE"):
        assert area.http.request(method, area.url()).get("Server") is None


def test_case_002_absent(area: Area) -> None:
    for key in (KEY, "ab/other", "x"):
        assert area.http.request("HEAD", area.url(key)).status == 404
        assert area.http.request("GET", area.url(key)).status == 404
    assert not area.directory.exists()
    area.put()
    for key in ("ab/cd/other", "ab/ef/other", "ef/gh/other"):
        assert area.http.request("HEAD", area.url(key)).status == 404
    assert area.names() == ["ab/", "ab/cd/", KEY]


def test_case_003_below_a_blob_and_long_names(area: Area) -> None:
    area.put()
    assert area.http.request("HEAD", area.url(f"{KEY}/below")).status == 404
    assert area.http.request("HEAD", area.url(f"{KEY}/")).status == 404
    assert area.http.request("HEAD", area.url("ab/cd/" + "x" * 300)).status == 404
    assert area.http.request("GET", area.url("ab/" + "x" * 300 + "/y")).status == 404


def test_case_004_directories(area: Area) -> None:
    area.put()
    reply = area.http.request("HEAD", area.url("ab/cd"))
    assert reply.status == 301
    assert reply["Location"].endswith(area.url("ab/cd/"))
    assert area.http.request("HEAD", area.url("ab/cd/")).status == 403
    assert area.http.request("GET", area.url("")).status == 403


def test_case_005_get(area: Area) -> None:
    data = os.urandom(300_000)
    url = area.put(data=data)
    for target in (url, f"{url}?", f"{url}?x=1"):
        reply = area.http.request("GET", target)
        assert (reply.status, reply.body) == (200, data)
        assert reply["Content-Length"] == "300000"


def test_case_006_empty_blob(area: Area) -> None:
    url = area.put(data=b"", mtime=WHEN)
    for method in ("GET", "HEAD"):
        reply = area.http.request(method, url)
        assert (reply.status, reply.body, reply["Content-Length"]) == (200, b"", "0")
        assert reply["ETag"] == etag(WHEN, 0)
        assert reply["ETag"].endswith('-0"')


def test_case_007_if_none_match(area: Area) -> None:
    url = area.put(mtime=WHEN)
    tag = etag(WHEN, 7)
    for value in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        for method in ("GET", "HEAD"):
            reply = area.http.request(method, url, None, {"If-None-Match": value})
            assert (reply.status, reply.body) == (304, b""), value
            assert reply["ETag"] == tag
            assert reply["Last-Modified"] == http_date(WHEN)
            assert reply.get("Content-Length") is None
    assert area.http.request("GET", url, None, {"If-None-Match": '"other"'}).status == 200


def test_case_008_if_modified_since_is_compared_for_equality(area: Area) -> None:
    url = area.put(mtime=WHEN)
    for seconds, status in ((0, 304), (1, 200), (-1, 200), (3600, 200)):
        since = {"If-Modified-Since": http_date(WHEN + seconds)}
        assert area.http.request("GET", url, None, since).status == status, seconds


def test_case_009_both_validators_must_match(area: Area) -> None:
    url = area.put(mtime=WHEN)
    tag = etag(WHEN, 7)
    for match, date, status in (
        (tag, WHEN, 304),
        (tag, WHEN + 1, 200),
        ('"other"', WHEN, 200),
    ):
        headers = {"If-None-Match": match, "If-Modified-Since": http_date(date)}
        assert area.http.request("GET", url, None, headers).status == status


def test_case_010_ranges(area: Area) -> None:
    data = bytes(range(256)) * 4096
    size = len(data)
    url = area.put(data=data)
    for asked, start, end in (
        ("10-19", 10, 20),
        ("-5", size - 5, size),
        ("700000-", 700_000, size),
        ("0-0", 0, 1),
        (f"1048000-{size + 100}", 1_048_000, size),
        ("65530-131080", 65_530, 131_081),
    ):
        reply = area.http.request("GET", url, None, {"Range": f"bytes={asked}"})
        assert (reply.status, reply.body) == (206, data[start:end]), asked
        assert reply["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
        assert reply["Content-Length"] == str(end - start)
        assert reply.get("Accept-Ranges") is None
    head = area.http.request("HEAD", url, None, {"Range": "bytes=10-19"})
    assert (head.status, head["Content-Length"]) == (206, "10")


def test_case_010_several_ranges(area: Area) -> None:
    url = area.put(data=b"0123456789")
    reply = area.http.request("GET", url, None, {"Range": "bytes=0-1,5-6"})
    assert reply.status == 206
    kind, _, boundary = reply["Content-Type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    assert reply["Content-Length"] == str(len(reply.body))
    parts = reply.body.split(f"--{boundary}".encode())
    assert parts[0] == b"\r\n"
    assert parts[-1] == b"--\r\n"
    for part, start, text in ((parts[1], 0, b"01"), (parts[2], 5, b"56")):
        head, _, body = part.partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {start}-{start + 1}/10".encode() in head
        assert b"Content-Type: text/html" in head
        assert body == text + b"\r\n"


def test_case_010_unsatisfiable_ranges(area: Area) -> None:
    url = area.put(data=b"0123456789")
    for asked in ("bytes=10-", "bytes=100-200"):
        reply = area.http.request("GET", url, None, {"Range": asked})
        assert (reply.status, reply["Content-Range"]) == (416, "bytes */10")
    # What is not understood is as if it had not been asked.
    assert area.http.request("GET", url, None, {"Range": "lines=1-2"}).status == 200


def test_case_011_if_range_and_preconditions(area: Area) -> None:
    url = area.put(data=b"0123456789", mtime=WHEN)
    tag = etag(WHEN, 10)
    for value, status in (
        (tag, 206),
        ('"other"', 200),
        (http_date(WHEN), 206),
        (http_date(WHEN - 1), 200),
    ):
        headers = {"Range": "bytes=0-1", "If-Range": value}
        assert area.http.request("GET", url, None, headers).status == status, value
    for name, value, status in (
        ("If-Match", '"other"', 412),
        ("If-Match", tag, 200),
        ("If-Match", "*", 200),
        ("If-Unmodified-Since", http_date(WHEN - 1), 412),
        ("If-Unmodified-Since", http_date(WHEN), 200),
    ):
        assert area.http.request("GET", url, None, {name: value}).status == status, (name, value)


def test_case_012_credentials(area: Area) -> None:
    area.put()
    wrong = (
        None,
        basic(USER, "wrong"),
        basic("nobody", PASSWORD),
        basic("", ""),
        "Basic !!!",
        "Bearer x",
    )
    with area.target.internal() as http:
        for value in wrong:
            for key in (KEY, "absent"):
                for method in ("HEAD", "GET", "PUT", "DELETE", "PROPFIND"):
                    body = b"" if method == "PUT" else None
                    reply = http.request(method, area.url(key), body, {"Authorization": value})
                    assert reply.status == 401, (value, method)
                    assert reply["WWW-Authenticate"].startswith("Basic ")
        # The second of the file, whose lines have blank ones between them.
        other = {"Authorization": basic("other", "other")}
        assert http.request("HEAD", area.url(), None, other).status == 200
    assert area.names() == ["ab/", "ab/cd/", KEY]


def test_case_013_other_methods(area: Area) -> None:
    area.put()
    for method in ("POST", "MKCOL", "OPTIONS", "MOVE", "LOCK", "UNLOCK", "PROPPATCH", "PATCH"):
        body = b"" if method in ("POST", "PROPPATCH", "PATCH") else None
        assert area.http.request(method, area.url(), body).status == 405, method
    assert area.http.request("GET", area.url()).body == b"content"


def test_case_014_spellings_of_a_path(area: Area) -> None:
    area.put()
    for spelled in (
        f"/admin//{area.name}///{KEY}",
        f"/admin/{area.name}/%61b/%63d/abcd-1",
        f"/admin/{area.name}/ab/./cd/../cd/abcd-1",
        f"/admin/{area.name}/%61%62%2Fcd/abcd%2d1",
    ):
        reply = area.http.request("GET", spelled)
        assert (reply.status, reply.body) == (200, b"content"), spelled
    for beyond in ("/../etc/passwd", "/admin/../../etc/passwd", "/%2e%2e/etc/passwd"):
        assert area.http.request("GET", beyond).status == 400, beyond
    assert area.http.request("GET", "/admin/%00").status == 400


def test_case_015_1001_requests_on_one_connection(area: Area) -> None:
    url = area.put()
    area.http.close()
    area.http.opened = 0
    for number in range(1001):
        key = url if number % 2 else f"{url}-absent"
        assert area.http.request("HEAD", key).status == (200 if number % 2 else 404)
    assert area.http.opened <= 2


def test_case_016_case_matters(area: Area) -> None:
    area.put("ab/cd/abcd-1")
    assert area.http.request("HEAD", area.url("AB/CD/ABCD-1")).status == 404
    area.put("AB/cd/abcd-1", b"another")
    assert area.http.request("GET", area.url("ab/cd/abcd-1")).body == b"content"


@pytest.mark.on(*CAFS, why="a restart is nothing to nginx on a plain directory")
def test_case_017_validators_survive_a_restart(area: Area, target: Target) -> None:
    mount = target.store_mount
    assert mount is not None
    data = os.urandom(200_000)
    dated, undated = area.put("dated", data, mtime=WHEN), area.put("undated", data[:1000])
    before = [area.http.request("HEAD", url) for url in (dated, undated)]
    mount.run("sweep", str(mount.store))
    mount.run("compact", str(mount.store))
    target.restart()
    after = [area.http.request("HEAD", url) for url in (dated, undated)]
    for old, new in zip(before, after, strict=True):
        for name in ("ETag", "Last-Modified", "Content-Length", "Content-Type"):
            assert old[name] == new[name]
    assert area.http.request("GET", dated).body == data


@pytest.mark.on("module", why="it compares what nginx answers in two ways")
def test_case_018_index_and_mount_give_the_same_answer(area: Area, target: Target) -> None:
    """Header by header, in their order; only the time of the answer may differ."""
    data = os.urandom(300_000)
    area.put("ab/blob", data, mtime=WHEN)
    area.put("ab/a.zip", data[:1000])
    area.put("ab/empty", b"")
    tag = etag(WHEN, len(data))
    asked: list[tuple[str, dict[str, str | None]]] = [
        ("ab/blob", {}),
        ("ab/a.zip", {}),
        ("ab/empty", {}),
        ("ab/absent", {}),
        ("ab", {}),
        ("ab/", {}),
        ("ab/blob/", {}),
        ("ab/blob/below", {}),
        ("x" * 300, {}),
        ("ab/blob", {"Range": "bytes=5-9"}),
        ("ab/blob", {"Range": "bytes=-5"}),
        ("ab/blob", {"Range": "bytes=299999-"}),
        ("ab/blob", {"Range": "bytes=300000-"}),
        ("ab/empty", {"Range": "bytes=0-1"}),
        ("ab/blob", {"Range": "bytes=0-1", "If-Range": tag}),
        ("ab/blob", {"Range": "bytes=0-1", "If-Range": '"other"'}),
        ("ab/blob", {"If-None-Match": tag}),
        ("ab/blob", {"If-None-Match": tag, "If-Modified-Since": http_date(WHEN + 1)}),
        ("ab/blob", {"If-Match": '"other"'}),
        ("ab/blob", {"If-Unmodified-Since": http_date(WHEN - 1)}),
        ("ab/blob", {"Connection": "close"}),
        ("%", {}),
    ]
    with mirror(target) as other:
        for method in ("HEAD", "GET"):
            for key, headers in asked:
                one, two = (
                    http.request(method, area.url(key), None, headers)
                    for http in (area.http, other)
                )
                assert one.status == two.status, (method, key, headers)
                if one.status not in (400, 301):
                    assert without_time(one) == without_time(two), (method, key, headers)
                if one.status in (200, 206):
                    assert one.body == two.body


def without_time(reply: Reply) -> list[tuple[str, str]]:
    """The headers but Date, and Server, which Debian's nginx cannot leave out."""
    return [(name, value) for name, value in reply.headers if name not in ("Date", "Server")]


def test_case_019_what_a_shell_does_is_seen_at_once(area: Area) -> None:
    url = area.put(data=b"first")
    file = area.file()
    for number in range(5):
        file.unlink()
        assert area.http.request("HEAD", url).status == 404
        file.write_bytes(b"by hand")
        assert area.http.request("GET", url).body == b"by hand"
        os.truncate(file, 2)
        assert area.http.request("GET", url).body == b"by"
        file.rename(area.file("moved"))
        assert area.http.request("HEAD", url).status == 404
        assert area.http.request("GET", area.url("moved")).body == b"by"
        area.file("moved").rename(file)
        os.utime(file, (number, number))
        assert area.http.request("HEAD", url)["Last-Modified"] == http_date(number)
        file.chmod(0)
        assert area.http.request("HEAD", url).status == 403
        file.chmod(0o644)
    area.directory.rename(area.directory.with_name(f"{area.name}-away"))
    assert area.http.request("HEAD", url).status == 404
    area.directory.with_name(f"{area.name}-away").rename(area.directory)
    assert area.http.request("HEAD", url).status == 200


def test_symbolic_links_are_followed_within_the_tree(area: Area) -> None:
    area.put()
    area.file("link").symlink_to("ab/cd/abcd-1")
    area.file("directory").symlink_to("ab")
    area.file("loop").symlink_to("loop")
    area.file("dangling").symlink_to("nowhere")
    assert area.http.request("GET", area.url("link")).body == b"content"
    assert area.http.request("GET", area.url("directory/cd/abcd-1")).body == b"content"
    assert area.http.request("GET", area.url("loop")).status == 403
    assert area.http.request("GET", area.url("dangling")).status == 404


def test_special_files_are_not_found(area: Area) -> None:
    area.put()
    os.mkfifo(area.file("pipe"), 0o644)
    assert area.http.request("GET", area.url("pipe")).status == 404


@pytest.mark.parametrize("name", ["a.txt", "a.tgz", "a.zip", "a.json", "a.jpg", "a.html", "a."])
def test_content_types_are_those_of_nginx(area: Area, name: str) -> None:
    known = {
        "a.txt": "text/plain",
        "a.zip": "application/zip",
        "a.json": "application/json",
        "a.jpg": "image/jpeg",
    }
    area.put(name)
    reply = area.http.request("HEAD", area.url(name))
    assert reply["Content-Type"] == known.get(name, "text/html")
