"""Requests as no library writes them: what nginx makes of each byte, the others make of it, too."""

from __future__ import annotations

import contextlib
import http.client
import ssl

import pytest

from tests.http.targets import Area


def ask(area: Area, request: bytes, *headers: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a request, which is its line up to the version."""
    own = [f"{name}: {value}".encode() for name, value in area.http.headers.items()]
    if any(header.startswith(b"Host:") for header in headers):
        own = [header for header in own if not header.startswith(b"Host:")]
    lines = [request + b" HTTP/1.1", *own, *headers, b"Connection: close", b"", b""]
    method = request.partition(b" ")[0].decode("latin-1")
    with area.http.endpoint.connect() as raw:
        raw.sendall(b"\r\n".join(lines))
        # Without close-notify the daemon's end of TLS is a ragged one.
        with contextlib.suppress(ssl.SSLEOFError):
            response = http.client.HTTPResponse(raw, method=method)
            response.begin()
            body = response.read()
    return response.status, body


def test_names_beyond_ascii_need_not_be_escaped(area: Area) -> None:
    raw, escaped = area.url("names/\u00e9\xff").encode("utf-8"), area.url("names/%C3%A9%C3%BF")
    absent = b"Content-Length: 0"
    assert ask(area, b"GET " + raw)[0] == 404
    assert ask(area, b"PUT " + raw, absent)[0] == 201
    assert area.file("names/\u00e9\xff").read_bytes() == b""
    assert area.http.request("PUT", escaped, b"content").status == 204
    # Whether it is still to be committed or was long ago.
    for _ in range(20):
        assert ask(area, b"GET " + raw) == (200, b"content")
        assert ask(area, b"HEAD " + raw)[0] == 200
    assert ask(area, b"PROPFIND " + raw, b"Depth: 0")[0] == 207
    destination = b"Destination: " + area.http.endpoint.base.encode() + raw + b"-copy"
    assert ask(area, b"COPY " + raw, destination)[0] == 204
    assert ask(area, b"GET " + raw + b"-copy?\xff=\xfe") == (200, b"content")
    assert ask(area, b"DELETE " + raw)[0] == 204
    assert area.http.request("GET", escaped).status == 404


@pytest.mark.parametrize("line", [b"G\xc3T /admin/", b"GET /admin/\xc3 x", b"GET \xc3/admin/"])
def test_elsewhere_than_in_a_path_they_are_refused(area: Area, line: bytes) -> None:
    assert ask(area, line)[0] == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"a b", 400),
        (b"a\tb", 400),
        (b"a/b", 400),
        (b"a..b", 400),
        (b"a:..", 400),
        (b"..", 400),
        (b".", 400),
        (b":80", 400),
        (b".:80", 400),
        (b"", 400),
        (b"a.:80", 200),
        (b".a", 200),
        (b"a:b", 200),
        (b"[::1]:80", 200),
        (b"\xc3\xa9", 200),
        (b"a,b@c", 200),
    ],
)
def test_which_hosts_there_may_be(area: Area, host: bytes, status: int) -> None:
    url = area.put().encode()
    assert ask(area, b"GET " + url, b"Host: " + host)[0] == status


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Authorization", 400),
        (b"If-Match: *", 400),
        (b"if-none-match: x", 400),
        (b"If-Modified-Since: x", 400),
        (b"If-Unmodified-Since: Fri, 31 Dec 2060 23:59:59 GMT", 400),
        (b"If-Range: x", 400),
        (b"Content-Range: x", 400),
        (b"Expect: x", 400),
        (b"User-Agent: x", 200),
        (b"Depth: 0", 200),
        (b"X-Forwarded-For: 10.0.0.1", 200),
    ],
)
def test_what_is_said_twice(area: Area, header: bytes, status: int) -> None:
    url = area.put().encode()
    if header == b"Authorization":
        header = b"Authorization: " + area.http.headers["Authorization"].encode()
        assert ask(area, b"GET " + url)[0] == 200
        again = [header]
    else:
        assert ask(area, b"GET " + url, header)[0] == 200
        again = [header, header]
    assert ask(area, b"GET " + url, *again)[0] == status


@pytest.mark.parametrize(
    ("spelled", "status"),
    [
        ("Basic {0}", 200),
        ("basic   {0} ", 200),
        ("Basic {0}=", 200),
        ("Basic {0}=====", 200),
        ("Basic {0}=whatever follows", 200),
        ("Basic {0}x", 401),
        ("Basic {0} x", 401),
        ("Basic {0}!", 401),
        ("Basic ={0}", 401),
        ("Basic{0}", 401),
    ],
)
def test_spellings_of_credentials(area: Area, spelled: str, status: int) -> None:
    area.put()
    # Without padding, whatever the length of the two.
    digits = area.http.headers["Authorization"].removeprefix("Basic ").rstrip("=")
    with area.target.internal() as http:
        headers = {"Authorization": spelled.format(digits)}
        assert http.request("GET", area.url(), None, headers).status == status


def test_a_head_as_long_as_nginx_takes_it(area: Area) -> None:
    """Whether nginx answers it itself or hands it over with a few headers more."""
    large = [b"X-%d: %b" % (number, 8000 * b"x") for number in range(3)]
    fits = [*large, b"X-Forwarded-For: " + b"10.0.0.1, " * 700 + b"10.0.0.1"]
    url = area.url().encode()
    assert ask(area, b"PUT " + url, b"Content-Length: 0", *fits)[0] == 201
    assert ask(area, b"GET " + url, *fits)[0] == 200
    assert ask(area, b"PROPFIND " + url, b"Depth: 0", *fits)[0] == 207
    assert ask(area, b"GET " + url, *fits, *large)[0] in (400, 431)
