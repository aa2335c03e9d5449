"""What an ended connection leaves in memory: nothing, and nobody has to collect it."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cafs.http import serve
from cafs.http_options import HttpOptions
from cafs.newstore import create
from cafs.store import Store
from tests.http.stocknginx import Certificate, make_certificate
from tests.http.wire import basic
from tests.unit.small_store import PARAMS, in_store

COUNT = 5
LARGE = 3_000_000
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
KEPT = {
    "Connection",
    "Head",
    "KnownLength",
    "MemoryBIO",
    "Request",
    "SSLObject",
    "SSLStream",
    "Server",
    "SocketStream",
    "_Exchange",
    "traceback",
}
"""Names of classes; of tracebacks each holds the frames that it went through."""

HEAD = f"HTTP/1.1\r\nHost: x\r\nAuthorization: {basic('user', 'password')}\r\n".encode()
END = b"Connection: close\r\n\r\n"


def _put(length: int) -> bytes:
    return b"PUT /admin/x %bContent-Length: %d\r\n\r\n" % (HEAD, length)


CHUNKED = b"PUT /admin/x %bTransfer-Encoding: chunked\r\n\r\n" % HEAD
WHOLE = {
    "put": _put(LARGE) + bytes(LARGE) + b"GET /healthz " + HEAD + END,
    "get": b"GET /admin/large " + HEAD + END,
    "head": b"HEAD /admin/large " + HEAD + END,
    "listing": b"PROPFIND /admin/ " + HEAD + END,
    "absent": b"GET /admin/absent " + HEAD + END,
    "no path": b"GET /admin/../../x " + HEAD + END,
    "no line": b"XX\r\n\r\n",
    "no chunk": CHUNKED + b"zz\r\n",
    "refused": b"PUT /admin/ %bContent-Length: 9\r\nExpect: 100-continue\r\n\r\n" % HEAD,
}
ABORTED = {
    "put": _put(10 * LARGE) + bytes(LARGE),
    "chunked": CHUNKED + b"%x\r\n%b" % (LARGE, bytes(LARGE // 2)),
    "get": b"GET /admin/large " + HEAD + b"\r\n",
    "line": b"GET /adm",
    "nothing": b"",
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(autouse=True)
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _count() -> Counter[str]:
    found = Counter(type(each).__name__ for each in gc.get_objects())
    return Counter({name: found[name] for name in KEPT})


def _talk(port: int, authority: Path | None, says: bytes, end: str) -> None:
    """Say something; then read to the end, close, or reset the connection."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        if authority is not None and end != "no TLS":
            context = ssl.create_default_context(cafile=str(authority))
            context.check_hostname = False
            raw = stack.enter_context(context.wrap_socket(raw))
        raw.sendall(says)
        if end == "read":
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(LARGE):
                    pass
        elif end == "reset":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)


async def _is_over(server: serve._Server) -> None:
    with trio.fail_after(20):
        while server._servers:
            await trio.sleep(0.001)


def _serving(options: HttpOptions, client: Callable[[int], Any]) -> Callable[[Store], Any]:
    """What lets *client* talk to a store, again and again, and looks at what that leaves."""

    async def work(store: Store) -> None:
        server = serve._Server(store, options)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, partial(server._serve, False), listeners)
            large = _put(LARGE).replace(b"/x", b"/large") + bytes(LARGE)
            authority = options.certificate
            end = b"GET /healthz " + HEAD + END
            talk: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync
            await talk(_talk, port, authority, large + end, "read")
            # What is made once is made now.
            await talk(client, port)
            await _is_over(server)
            before = _count()
            for _ in range(COUNT):
                await talk(client, port)
            await _is_over(server)
            # Its task ends in the turn after.
            await trio.testing.wait_all_tasks_blocked()
            more = {name: n for name, n in (_count() - before).items() if n >= COUNT}
            nursery.cancel_scope.cancel()
        server.application.close()
        assert not more

    return work


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize(
    ("says", "end"),
    [
        *(pytest.param(says, "read", id=f"{name}, whole") for name, says in WHOLE.items()),
        *(pytest.param(says, "close", id=f"{name}, closed") for name, says in ABORTED.items()),
        *(pytest.param(says, "reset", id=f"{name}, reset") for name, says in ABORTED.items()),
        pytest.param(WHOLE["head"], "no TLS", id="no TLS"),
    ],
)
def test_an_ended_connection_leaves_nothing(
    tmp_path: Path, certificate: Certificate, tls: bool, says: bytes, end: str
) -> None:
    users = tmp_path / "users"
    users.write_text("user:{PLAIN}password\n")
    options = HttpOptions(
        users_file=users,
        certificate=certificate.certificate if tls else None,
        certificate_key=certificate.key if tls else None,
        keepalive=2.0,
    )
    create(tmp_path / "store", PARAMS)
    client = partial(_talk, authority=options.certificate, says=says, end=end)
    in_store(tmp_path / "store", _serving(options, client))
