"""Bodies of a PUT on the wire, with and without TLS: what came is what lies in the mount."""

from __future__ import annotations

import contextlib
import json
import os
import random
import ssl
from collections.abc import Iterator

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.daemon import DaemonAlone, daemon_alone

KIB, MIB = 1 << 10, 1 << 20
SIZES = (0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB, MIB, MIB + 1, 9 * MIB + 5)


@pytest.fixture(scope="module", params=[False, True], ids=["clear", "tls"])
def daemon(request: pytest.FixtureRequest) -> Iterator[DaemonAlone]:
    with daemon_alone(tls=request.param, client_timeout="2s", max_upload="30MiB") as daemon:
        yield daemon


def test_bodies_of_all_sizes_on_one_connection(daemon: DaemonAlone) -> None:
    chance = random.Random(1)
    with daemon.client() as http:
        for number, size in enumerate(SIZES):
            body = chance.randbytes(size)
            for status in (201, 204):
                reply = http.request("PUT", f"/admin/cc-sizes/{number}", body)
                assert reply.status == status, reply
            assert http.request("GET", f"/admin/cc-sizes/{number}").body == body
            assert daemon.file(f"cc-sizes/{number}").read_bytes() == body
        assert http.opened == 1


def test_requests_behind_a_body_are_answered_in_order(daemon: DaemonAlone) -> None:
    sent, bodies = [], []
    with daemon.client() as http:
        head = "".join(f"{name}: {value}\r\n" for name, value in http.headers.items())
    for number, size in enumerate((70_000, 5, 300_000, 0, 1_500_000)):
        bodies.append(os.urandom(size))
        put = f"PUT /admin/cc-line/{number} HTTP/1.1\r\n{head}Content-Length: {size}\r\n\r\n"
        sent += [put.encode(), bodies[-1]]
    sent.append(f"GET /healthz HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
    with daemon.endpoint.connect() as raw:
        raw.sendall(b"".join(sent))
        said = b""
        # The end of the connection comes without close-notify.
        with contextlib.suppress(ssl.SSLEOFError):
            while data := raw.recv(64 * KIB):
                said += data
    assert said.count(b"HTTP/1.1 201 ") == len(bodies)
    assert said.count(b"HTTP/1.1 ") == len(bodies) + 1
    for number, body in enumerate(bodies):
        assert daemon.file(f"cc-line/{number}").read_bytes() == body


@pytest.mark.parametrize("sent", [0, 10, 100_000, 5 * MIB])
def test_a_body_that_ends_too_early_leaves_nothing(daemon: DaemonAlone, sent: int) -> None:
    with daemon.client() as http:
        put = http.begin("PUT", "/admin/cc-short/x", framing={"Content-Length": str(6 * MIB)})
        put.send(os.urandom(sent))
    wait_until("it is over", lambda: not _being_written(daemon))
    with daemon.client() as http:
        assert http.request("GET", "/admin/cc-short/x").status == 404


def test_a_refusal_before_the_body_leaves_the_connection_as_it_should_be(
    daemon: DaemonAlone,
) -> None:
    with daemon.client() as http:
        for path, size, status in (
            ("directory/", 3 * MIB, 409),
            ("large", 31 * MIB, 413),
            ("fits", 3 * MIB, 201),
        ):
            reply = http.request("PUT", f"/admin/cc-x/{path}", os.urandom(size))
            assert reply.status == status, reply
            assert reply.get("Connection") != "close"
        assert http.opened == 1


def _being_written(daemon: DaemonAlone) -> bool:
    answer = json.loads(daemon.mount.run("status", str(daemon.mount.store), "--json"))
    return bool(answer["pending"]["files_being_written_count"])
