"""The daemon's own HTTP side: the trusted socket, time limits, TLS, logs, metrics, its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.client import IncompleteRead

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.daemon import KEY, LOGIN, DaemonAlone, daemon_alone
from tests.http.links import md5_link
from tests.http.stocknginx import SECRET, make_certificate
from tests.http.wire import Connection
from tests.mount.mounted import Mount

MIB = 1 << 20


@pytest.fixture(scope="module")
def plain() -> Iterator[DaemonAlone]:
    with daemon_alone(client_timeout="2s", keepalive="2s") as daemon:
        yield daemon


@pytest.fixture
def http(plain: DaemonAlone) -> Iterator[Connection]:
    with plain.client() as connection:
        yield connection


# -- the trusted socket ------------------------------------------------------------------------


def test_nginx_is_trusted(plain: DaemonAlone) -> None:
    with plain.through_socket() as nginx:
        said = {"X-Forwarded-Proto": "https"}
        reply = nginx.request("PUT", "/admin/cc-socket/new", b"x", said)
        assert reply.status == 201
        assert reply["Location"] == "https://blobstore.service.cf.internal:4443/admin/cc-socket/new"
        assert nginx.request("HEAD", "/admin/cc-socket/new").status == 200
        reply = nginx.request("HEAD", "/admin/cc-socket", None, said)
        assert reply.status == 301
        assert reply["Location"] == "https://blobstore.service.cf.internal:4443/admin/cc-socket/"


def test_links_are_checked_all_the_same(plain: DaemonAlone) -> None:
    link = md5_link(SECRET, "/read/cc-link/x", 4102444800)
    with plain.through_socket() as nginx:
        nginx.request("PUT", "/admin/cc-link/x", b"linked")
        assert nginx.request("GET", "/read/cc-link/x").status == 403
        assert nginx.request("GET", link).body == b"linked"


def test_who_may_open_the_socket(plain: DaemonAlone) -> None:
    status = (plain.mount.store / "http.sock").stat()
    assert status.st_mode & 0o777 == 0o600
    assert status.st_uid == plain.root.stat().st_uid


# -- what the kernel remembers -----------------------------------------------------------------


def test_the_mount_sees_what_http_did(plain: DaemonAlone, http: Connection) -> None:
    file, directory = plain.file("cc-kernel/a/b"), plain.file("cc-kernel")
    for number in range(20):
        path = f"/admin/cc-kernel/a/b{number}"
        file = plain.file(f"cc-kernel/a/b{number}")
        assert not file.exists(), "and the kernel remembers that"
        assert http.request("PUT", path, b"one").status == 201
        assert file.stat().st_size == 3
        assert file.read_bytes() == b"one"
        assert file.name in os.listdir(file.parent)
        links = directory.stat().st_nlink
        assert http.request("PUT", path, b"twice").status == 204
        assert file.read_bytes() == b"twice"
        assert http.request("PUT", f"/admin/cc-kernel/{number}/x", b"").status == 201
        assert directory.stat().st_nlink == links + 1
        assert http.request("DELETE", path).status == 204
        assert not file.exists()


def test_other_names_of_a_replaced_file(plain: DaemonAlone, http: Connection) -> None:
    http.request("PUT", "/admin/cc-links/one", b"old")
    one, two = plain.file("cc-links/one"), plain.file("cc-links/two")
    os.link(one, two)
    assert two.stat().st_nlink == 2
    assert http.request("PUT", "/admin/cc-links/one", b"new").status == 204
    assert (two.stat().st_nlink, two.read_bytes()) == (1, b"old")
    assert (one.stat().st_nlink, one.read_bytes()) == (1, b"new")


def test_a_file_that_is_open_in_the_mount_when_it_is_replaced(
    plain: DaemonAlone, http: Connection
) -> None:
    old = os.urandom(3 * MIB)
    http.request("PUT", "/admin/cc-open/x", old)
    with plain.file("cc-open/x").open("rb") as file:
        assert http.request("PUT", "/admin/cc-open/x", b"new").status == 204
        assert file.read() == old
    assert plain.file("cc-open/x").read_bytes() == b"new"


def test_http_sees_what_is_being_written_in_the_mount(plain: DaemonAlone, http: Connection) -> None:
    http.request("PUT", "/admin/cc-live/x", b"content")
    with plain.file("cc-live/x").open("r+b", buffering=0) as file:
        file.write(b"CON")
        assert http.request("GET", "/admin/cc-live/x").body == b"CONtent"
        file.truncate(5)
        reply = http.request("HEAD", "/admin/cc-live/x")
        assert reply["Content-Length"] == "5"


# -- time limits and bodies that nobody wants ----------------------------------------------------


def test_a_client_that_stops_sending(plain: DaemonAlone) -> None:
    with plain.client() as slow:
        slow.begin("PUT", "/admin/cc-slow/x", framing={"Content-Length": "100"}).send(b"half")
        assert slow.answer().status == 408
    assert not plain.file("cc-slow/x").exists()


def test_a_client_that_takes_nothing(plain: DaemonAlone, http: Connection) -> None:
    http.request("PUT", "/admin/cc-slow/big", bytes(40 * MIB))
    with plain.client() as slow:
        slow.begin("GET", "/admin/cc-slow/big")
        response = slow.answer()
        assert len(response.read(10)) == 10
        log = plain.access_log
        wait_until("it was cut", lambda: b"GET /admin/cc-slow/big" in log.read_bytes())
        with pytest.raises((ConnectionResetError, IncompleteRead)):
            response.read()


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "])
def test_a_client_that_never_finishes_asking(plain: DaemonAlone, begun: bytes) -> None:
    """Not even when it sends a byte now and then."""
    with plain.endpoint.connect() as raw:
        raw.sendall(begun)
        raw.settimeout(0.05)
        ended = False
        until = time.monotonic() + 20
        while not ended and time.monotonic() < until:
            try:
                ended = not raw.recv(1000)
            except TimeoutError:
                if begun:
                    with contextlib.suppress(BrokenPipeError):
                        raw.sendall(b"x")
            except ConnectionResetError:
                ended = True
        assert ended


@pytest.mark.parametrize("size", [0, 100, 3 * MIB, 80 * MIB])
def test_an_answer_before_the_body(plain: DaemonAlone, size: int) -> None:
    """More than is dropped for nothing: the answer comes all the same, and then the end."""
    body = bytes(size)
    with plain.client() as client, contextlib.suppress(BrokenPipeError):
        for _ in range(2):
            reply = client.request("PUT", "/admin/", iter([body]) if size > 70 * MIB else body)
            assert reply.status == 409
    with plain.stranger() as stranger:
        reply = stranger.request("PUT", KEY, bytes(MIB))
        assert reply.status == 401
        assert reply["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize("through", ["tcp", "unix"])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_before_the_body_is_heard_by_who_sends_all_of_it(
    plain: DaemonAlone, through: str, chunked: bool
) -> None:
    """However long it is: the server goes on to take what comes, until the client closes."""
    _refused_and_heard(plain.client() if through == "tcp" else plain.through_socket(), chunked)


def test_an_answer_before_the_body_is_heard_under_tls() -> None:
    with daemon_alone(tls=True, client_timeout="2s") as daemon:
        _refused_and_heard(daemon.client(), chunked=False)


def _refused_and_heard(client: Connection, chunked: bool) -> None:
    piece, count = bytes(MIB), 200
    framing = {"Content-Length": str(count * MIB)}
    if chunked:
        piece, framing = b"%x\r\n%b\r\n" % (MIB, piece), {"Transfer-Encoding": "chunked"}
    with client:
        put = client.begin("PUT", "/admin/", framing=framing)
        for _ in range(count):
            put.send(piece)
        response = client.answer()
        assert response.status == 409
        assert response.getheader("Connection") == "close"
        assert response.read().startswith(b"409: ")


def test_who_never_ends_a_body_that_nobody_wants_is_not_waited_for(plain: DaemonAlone) -> None:
    head = f"PUT /admin/ HTTP/1.1\r\nHost: x\r\nContent-Length: {100 * MIB}\r\n"
    with plain.through_socket().endpoint.connect() as raw:
        raw.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(1000), b""))
        assert answer.startswith(b"HTTP/1.1 409 ")
        raw.sendall(b"it still listens")
        # Both directions: so much is told of a unix socket whose other end is closed.
        poll = select.poll()
        poll.register(raw, 0)
        assert [event & select.POLLHUP for _, event in poll.poll(20_000)] == [select.POLLHUP]


def test_nobody_is_asked_to_send_what_will_be_dropped(plain: DaemonAlone) -> None:
    head = (
        f"PUT {KEY} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n"
    )
    with plain.endpoint.connect() as raw:
        raw.sendall(head.encode())
        answer = b"".join(iter(lambda: raw.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    ("version", "lengths"),
    [
        ("1.1", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
        ("1.1", "Transfer-Encoding: chunked\r\nContent-Length: 40\r\n"),
        ("1.1", "Content-Length: 4\r\nContent-Length: 5\r\n"),
        ("1.1", "Content-Length: +4\r\n"),
        ("1.0", "Transfer-Encoding: chunked\r\n"),
    ],
)
def test_where_a_request_ends_is_clear_or_it_is_refused(
    plain: DaemonAlone, version: str, lengths: str
) -> None:
    """Else a proxy before us could take the rest of a body for somebody's request."""
    smuggled = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"PUT {KEY}-smuggled HTTP/{version}\r\nHost: x\r\n{lengths}\r\n"
    with plain.endpoint.connect() as raw:
        raw.sendall(f"{head}0\r\n\r\n{smuggled}".encode())
        answer = b"".join(iter(lambda: raw.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.partition(b"\r\n\r\n")[2].startswith(b"400: ")


@pytest.mark.parametrize(
    ("request_", "status", "line"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, b"this is not HTTP"),
        (b"GET /\r\n\r\n", 400, b"this is not HTTP"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nbad name: 1\r\n\r\n", 400, b"this is not HTTP"),
        (b"P\xc3T /\xc3 HTTP/1.1\r\n\r\n", 400, b"request line: 'P\\xc3T /%C3 HTTP/1.1'"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x1b]0;x\x07\r\n\r\n", 400, b"this is not HTTP"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"this is not HTTP"),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505, b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + 50_000 * b"a", 431, b"longer than 40960 bytes"),
        (b"GET /" + 50_000 * b"a", 431, b"longer than 40960 bytes"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, b"this is not HTTP"),
    ],
)
def test_what_is_no_http_is_answered_in_a_line(
    plain: DaemonAlone, request_: bytes, status: int, line: bytes
) -> None:
    with plain.endpoint.connect() as raw:
        raw.sendall(request_)
        answer = b"".join(iter(lambda: raw.recv(1000), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert body.startswith(b"%d: " % status) and line in body
    assert body.count(b"\n") == 1 and body.endswith(b"\n")
    assert body[:-1].isascii() and body[:-1].decode().isprintable()
    assert b"bytearray" not in body


def test_a_body_of_tiny_chunks_holds_nobody_up(plain: DaemonAlone, http: Connection) -> None:
    """A chunk of one byte costs as much as one of a megabyte, and all of them are there at once."""
    login = "".join(f"{name}: {value}\r\n" for name, value in LOGIN.items())
    head = f"PUT {KEY}-tiny HTTP/1.1\r\nHost: x\r\n{login}Transfer-Encoding: chunked\r\n\r\n"
    with plain.endpoint.connect() as raw:
        raw.settimeout(60)
        sender = threading.Thread(
            target=raw.sendall, args=(head.encode() + b"1\r\nx\r\n" * 80_000 + b"0\r\n\r\n",)
        )
        sender.start()
        others = 0
        while not select.select([raw], [], [], 0)[0]:
            assert http.request("HEAD", "/healthz").status == 200
            others += 1
        sender.join()
        assert raw.recv(1000).startswith(b"HTTP/1.1 201 ")
    # In one go each half a megabyte of them took two seconds: nobody else was answered.
    assert others > 50
    assert http.request("HEAD", f"{KEY}-tiny")["Content-Length"] == "80000"


def test_methods_are_written_in_capitals(plain: DaemonAlone, http: Connection) -> None:
    assert http.request("PUT", KEY, b"x").status in (201, 204)
    with plain.endpoint.connect() as raw:
        raw.sendall(f"head {KEY} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(1000), b""))
    assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 405 "))


def test_nobody_is_talked_into_another_protocol(plain: DaemonAlone) -> None:
    with plain.client() as client:
        upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": ""}
        assert client.request("HEAD", "/admin/absent", None, upgrade).status == 404
    with plain.stranger() as stranger:
        upgrade = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        assert stranger.request("GET", KEY, None, upgrade).status == 401


def test_the_connection_after_a_thousand_requests(plain: DaemonAlone, http: Connection) -> None:
    for number in range(1001):
        assert http.request("HEAD", f"/admin/cc-x/{number}").status == 404
    assert http.opened == 2


# -- what an operator sees ---------------------------------------------------------------------


def test_health(plain: DaemonAlone) -> None:
    with plain.stranger() as anybody:
        assert anybody.request("GET", "/healthz").body == b"ok\n"
        assert anybody.request("GET", "/readyz").body == b"ready\n"
        assert anybody.request("HEAD", "/readyz").status == 200
        assert anybody.request("PUT", "/readyz", b"").status == 405
        assert anybody.request("GET", "/metrics").status == 401


def test_metrics(plain: DaemonAlone, http: Connection) -> None:
    def value(name: str) -> float:
        text = http.request("GET", "/metrics").body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(found[1]) if found else 0.0

    puts = 'cafs_http_requests_total{location="admin",method="PUT",status="201"}'
    before = (
        value(puts),
        value("cafs_http_received_bytes_total"),
        value("cafs_commit_seconds_count"),
    )
    assert http.request("PUT", "/admin/cc-metrics/x", b"12345").status == 201
    assert value(puts) == before[0] + 1
    assert value("cafs_http_received_bytes_total") == before[1] + 5
    assert value("cafs_commit_seconds_count") > before[2]
    assert value("cafs_healthy") == 1
    assert (
        value("cafs_files")
        == json.loads(plain.mount.run("status", str(plain.mount.store), "--json"))["files_count"]
    )
    for method in ("BREW", "SPIN"):
        assert http.request(method, "/admin/").status == 405
    others = 'cafs_http_requests_total{location="admin",method="other",status="405"}'
    assert value(others) >= 2


def test_access_log(plain: DaemonAlone) -> None:
    with plain.client(**{"User-Agent": 'a "client"'}) as client:
        client.request("GET", "/admin/cc-logged/absent?x=1")
    with plain.through_socket() as nginx:
        nginx.request("GET", "/healthz", None, {"X-Forwarded-For": "6.6.6.6, 10.1.2.3"})
    # An answer may arrive before it is logged.
    wait_until("all is logged", lambda: b"\n10.1.2.3 - - " in plain.access_log.read_bytes())
    lines = plain.access_log.read_text().splitlines()
    (line,) = (line for line in lines if "cc-logged" in line)
    assert re.fullmatch(
        r"127\.0\.0\.1 - blobstore \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "
        r'"GET /admin/cc-logged/absent\?x=1 HTTP/1\.1" 404 \d+ "-" "a \\x22client\\x22" '
        r"\d+\.\d{3} - \.",
        line,
    )


# -- who may do what ---------------------------------------------------------------------------


def test_permissions_of_the_tree_count() -> None:
    with daemon_alone(owner="1234:1234", file_mode="0640", directory_mode="0750") as daemon:
        os.chmod(daemon.root, 0o777)
        with daemon.client() as http:
            assert http.request("PUT", KEY, b"x").status == 201
            status = daemon.file().stat()
            assert (status.st_uid, status.st_gid, status.st_mode) == (1234, 1234, 0o100640)
            above = daemon.file().parent.stat()
            assert (above.st_uid, above.st_mode) == (1234, 0o40750)
            os.chmod(daemon.file(), 0o000)
            assert http.request("GET", KEY).status == 403
            os.chown(daemon.file(), 0, 0)
            os.chmod(daemon.file(), 0o044)
            assert http.request("GET", KEY).status == 200
            os.chmod(daemon.file().parent, 0o600)
            assert http.request("HEAD", KEY).status == 403
            assert http.request("PUT", KEY, b"x").status == 500
            os.chmod(daemon.file().parent, 0o500)
            assert http.request("PUT", KEY, b"x").status == 500
            assert http.request("DELETE", KEY).status == 403
            os.chmod(daemon.file().parent, 0o700)
            assert http.request("PUT", KEY, b"x").status == 204


def test_access_from_elsewhere() -> None:
    with daemon_alone(access="10.0.0.0/8 ::1") as daemon, daemon.client() as http:
        for path in (KEY, "/sign?expires=1&path=/x", "/metrics", "/resource_matches"):
            assert http.request("GET", path).status == 403, path
        assert http.request("GET", "/healthz").status == 200
        assert http.request("GET", md5_link(SECRET, "/read/x", 4102444800)).status == 404


def test_without_users_nobody_gets_in() -> None:
    with daemon_alone(users_file="/nonexistent/users") as daemon, daemon.client() as http:
        assert http.request("HEAD", KEY).status == 403
        daemon.mount.announce("nobody gets in")


# -- TLS ---------------------------------------------------------------------------------------


def test_tls_and_a_new_certificate() -> None:
    with daemon_alone(tls=True) as daemon:
        assert daemon.certificate is not None
        with daemon.client() as http:
            assert http.request("PUT", KEY, b"secret").status == 201
            assert isinstance(http.socket, ssl.SSLSocket)
            assert http.socket.selected_alpn_protocol() in (None, "http/1.1")
        old = ssl.get_server_certificate(("127.0.0.1", daemon.endpoint.port))
        other = daemon.mount.base / "other"
        other.mkdir()
        new = make_certificate(other)
        shutil.copy(new.key, daemon.certificate.key)
        os.replace(shutil.copy(new.certificate, other / "copy"), daemon.certificate.certificate)
        assert ssl.get_server_certificate(("127.0.0.1", daemon.endpoint.port)) != old


def test_what_is_no_tls_is_dropped() -> None:
    with daemon_alone(tls=True) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.endpoint.port)) as raw:
            raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            raw.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(1000):
                    pass
        with daemon.client() as http:
            assert http.request("GET", "/healthz").status == 200


# -- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_a_put_that_is_under_way_when_the_mount_goes(tls: bool) -> None:
    data = os.urandom(2 * MIB)
    with daemon_alone(tls=tls) as daemon, daemon.client() as idle, daemon.client() as http:
        assert idle.request("GET", "/healthz").status == 200
        put = http.begin("PUT", KEY, framing={"Content-Length": str(len(data))})
        put.send(data[:MIB])
        wait_until("it has begun", lambda: _being_written(daemon))
        ending = threading.Thread(target=daemon.mount.unmount)
        ending.start()
        wait_until("it is going", lambda: not daemon.mount.is_mounted())
        put.send(data[MIB:])
        assert http.answer().status == 201
        ending.join()
        assert not (daemon.mount.store / "http.sock").exists()
        daemon.mount.start()
        assert daemon.file().read_bytes() == data


def _being_written(daemon: DaemonAlone) -> bool:
    answer = json.loads(daemon.mount.run("status", str(daemon.mount.store), "--json"))
    return bool(answer["pending"]["files_being_written_count"])


def test_a_socket_that_a_killed_daemon_left_behind() -> None:
    with daemon_alone() as daemon:
        daemon.mount.kill()
        assert (daemon.mount.store / "http.sock").exists()
        daemon.start()
        with daemon.through_socket() as nginx:
            assert nginx.request("GET", "/healthz").status == 200


def test_sigterm_ends_all() -> None:
    with daemon_alone() as daemon, daemon.client() as http:
        assert http.request("PUT", KEY, b"x").status == 201
        os.kill(daemon.mount.pid, signal.SIGTERM)
        wait_until("it is gone", lambda: not daemon.mount.is_mounted())


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            'listen = "127.0.0.1:{port}"',
            "{port} (http.listen): Address already in use",
        ),
        ('listen = "127.0.0.1:0"\ncertificate = "/nonexistent"', "http.certificate"),
    ],
)
def test_settings_that_cannot_be(setting: str, says: str) -> None:
    mount = Mount()
    taken = socket.create_server(("127.0.0.1", 0))
    try:
        port = str(taken.getsockname()[1])
        settings = mount.base / "cafs.toml"
        settings.write_text("[http]\n" + setting.replace("{port}", port) + "\n")
        arguments = ("mount", str(mount.store), str(mount.root), "--config", str(settings))
        with pytest.raises(AssertionError) as failed:
            mount.run(*arguments)
        assert says.replace("{port}", port) in str(failed.value)
        assert "Traceback" not in str(failed.value)
        assert not mount.is_mounted()
    finally:
        taken.close()
        mount.close()


def test_a_mount_without_http() -> None:
    mount = Mount()
    try:
        settings = mount.base / "cafs.toml"
        settings.write_text("[http]\nserve = false\n")
        mount.configure(settings)
        mount.start()
        assert not (mount.store / "http.sock").exists()
        mount.unmount()
    finally:
        mount.close()
