"""What the daemon counts and logs of a request is what its client got."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import struct
from collections.abc import Iterator
from http.client import IncompleteRead

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.daemon import KEY, LOGIN, DaemonAlone, daemon_alone
from tests.http.test_faults_damage import DAMAGE_LOG, find_in_packs, flip
from tests.http.wire import Connection

MIB = 1 << 20
LOGIN_LINE = f"Authorization: {LOGIN['Authorization']}\r\n"
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module", params=[False, True], ids=["clear", "tls"])
def daemon(request: pytest.FixtureRequest) -> Iterator[DaemonAlone]:
    with daemon_alone(tls=request.param, client_timeout="2s") as running:
        yield running


def counted(daemon: DaemonAlone, method: str, status: int, location: str = "admin") -> float:
    name = "cafs_http_requests_total"
    labels = f'location="{location}",method="{method}",status="{status}"'
    with daemon.client() as http:
        text = http.request("GET", "/metrics").body.decode()
    found = re.search(rf"^{name}{{{labels}}} (\S+)$", text, re.M)
    return float(found[1]) if found else 0.0


def logged(daemon: DaemonAlone, request: str) -> tuple[int, int]:
    """Status and bytes in the only line about a request."""
    pattern = re.compile(rf'"{re.escape(request)}" (\d+) (\d+) ')
    log = daemon.access_log
    # It is written when all is over, and made for the first line.
    wait_until("it is logged", lambda: log.exists() and bool(pattern.search(log.read_text())))
    status, size = pattern.findall(log.read_text())[-1]
    return int(status), int(size)


def being_written(daemon: DaemonAlone) -> bool:
    answer = json.loads(daemon.mount.run("status", str(daemon.mount.store), "--json"))
    return bool(answer["pending"]["files_being_written_count"])


def go(client: Connection, *, reset: bool) -> None:
    if reset:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    client.socket.close()
    client.close()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("chunked", [False, True])
def test_who_goes_away_in_a_put(daemon: DaemonAlone, reset: bool, chunked: bool) -> None:
    key = f"/admin/cc-gone/{reset}{chunked}"
    before = counted(daemon, "PUT", 499)
    client = daemon.client()
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(9 * MIB)}
    client.begin("PUT", key, framing=framing).send(b"%x\r\n" % (9 * MIB) + bytes(MIB))
    # Who resets takes back what was not read yet.
    wait_until("it has begun", lambda: being_written(daemon))
    go(client, reset=reset)
    assert logged(daemon, f"PUT {key} HTTP/1.1") == (499, 0)
    assert counted(daemon, "PUT", 499) == before + 1


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_who_goes_away_in_a_get(daemon: DaemonAlone, reset: bool) -> None:
    key = f"/admin/cc-gone/get{reset}"
    with daemon.client() as http:
        assert http.request("PUT", key, bytes(40 * MIB)).status == 201
    before = counted(daemon, "GET", 499)
    client = daemon.client()
    client.begin("GET", key)
    assert client.socket.recv(10) == b"HTTP/1.1 2"
    go(client, reset=reset)
    status, size = logged(daemon, f"GET {key} HTTP/1.1")
    assert status == 499
    assert size < 40 * MIB
    assert counted(daemon, "GET", 499) == before + 1


def test_who_is_too_slow(daemon: DaemonAlone) -> None:
    """To send as well as to take."""
    key = "/admin/cc-slow/x"
    with daemon.client() as slow:
        slow.begin("PUT", key, framing={"Content-Length": "100"}).send(b"half")
        response = slow.answer()
        assert response.status == 408
        said = response.read()
        assert logged(daemon, f"PUT {key} HTTP/1.1") == (408, len(said))
    with daemon.client() as slow:
        assert slow.request("PUT", key, bytes(40 * MIB)).status == 201
        slow.begin("GET", f"{key}?slow")
        status, size = logged(daemon, f"GET {key}?slow HTTP/1.1")
        assert status == 408
        assert size < 40 * MIB


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_who_stays_is_counted_by_what_he_got(daemon: DaemonAlone, method: str) -> None:
    key = f"/admin/cc-stays/{method}"
    with daemon.client() as http:
        if method == "GET":
            assert http.request("PUT", key, bytes(3 * MIB)).status == 201
        body = bytes(100) if method == "PUT" else None
        reply = http.request(method, f"{key}?it", body)
    status = (reply.status, len(reply.body))
    assert status == ((200, 3 * MIB) if method == "GET" else (201, 0))
    assert logged(daemon, f"{method} {key}?it HTTP/1.1") == status


BAD_CHUNK = "Host: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"


@pytest.mark.parametrize(
    ("method", "line", "rest", "status", "location"),
    [
        ("GET", "GET /a\x01 HTTP/1.1", "Host: x\r\n\r\n", 400, "other"),
        ("GET", "GET /no-host HTTP/1.1", "\r\n", 400, "other"),
        ("HEAD", "HEAD /control HTTP/1.1", "Host: x\r\nA: \x01\r\n\r\n", 400, "other"),
        ("HEAD", "HEAD /no-host HTTP/1.1", "\r\n", 400, "other"),
        ("PUT", "PUT /new HTTP/2.0", "Host: x\r\n\r\n", 505, "other"),
        ("GET", "GET /long HTTP/1.1", 50_000 * "a", 431, "other"),
        ("other", "BREW", "\r\n", 400, "other"),
        ("other", "\x16\x03\x01\x02", "\r\n", 400, "other"),
        ("PUT", "PUT /nowhere HTTP/1.1", BAD_CHUNK, 404, "other"),
        ("PUT", "PUT /admin/x HTTP/1.1", BAD_CHUNK, 401, "admin"),
        ("PUT", "PUT /admin/x?login HTTP/1.1", f"{LOGIN_LINE}{BAD_CHUNK}", 400, "admin"),
    ],
)
def test_what_is_no_request_is_counted_too(
    daemon: DaemonAlone, method: str, line: str, rest: str, status: int, location: str
) -> None:
    before = counted(daemon, method, status, location)
    with daemon.endpoint.connect() as raw:
        raw.sendall(f"{line}\r\n{rest}".encode("latin-1"))
        answer = b""
        # Without close-notify the daemon's end of TLS is a ragged one.
        with contextlib.suppress(ssl.SSLEOFError):
            while data := raw.recv(1000):
                answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close" in head
    escaped = re.sub("[\0-\x1f]", lambda found: f"\\x{ord(found[0]):02X}", line)
    length = 0 if method == "HEAD" else len(body)
    assert logged(daemon, escaped) == (status, length)
    assert counted(daemon, method, status, location) == before + 1


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
def test_a_body_that_is_cut_for_damage(tls: bool) -> None:
    data = os.urandom(6 * MIB)
    with daemon_alone(tls=tls) as daemon:
        mount = daemon.mount
        mount.announce(DAMAGE_LOG)
        with daemon.client() as http:
            assert http.request("PUT", KEY, data).status == 201
        mount.unmount()  # and with it go the caches
        for place in find_in_packs(mount, data[4 * MIB : 4 * MIB + 100]):
            flip(*place)
        daemon.start()
        with daemon.client() as http:
            http.begin("GET", KEY)
            response = http.answer()
            assert response.status == 200
            with pytest.raises((OSError, IncompleteRead)):
                response.read()
        status, size = logged(daemon, f"GET {KEY} HTTP/1.1")
        assert status == 500
        assert 0 < size < len(data)
        assert counted(daemon, "GET", 500) == 1
        assert counted(daemon, "GET", 200) == 0
        wait_until("written again it is whole", lambda: heals(daemon, data))


def heals(daemon: DaemonAlone, data: bytes) -> bool:
    with daemon.client() as http:
        assert http.request("PUT", KEY, data).status == 204
        try:
            return http.request("GET", KEY).body == data
        except (OSError, IncompleteRead):
            return False
