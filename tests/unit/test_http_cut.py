"""An answer that could not be finished never looks finished, whatever ended it."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import trio
from starlette.types import Message, Receive, Scope, Send

from cafs.http.connection import Connection
from cafs.http.http11 import Server
from cafs.http.unread import UnreadBody

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
SIZE = 32_000_000
"""More than the kernel takes for a client that does not read."""


def answering(pieces: int, *, stated: int = SIZE) -> Application:
    """An application that sends SIZE bytes in so many pieces, and says that they are *stated*."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % stated)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(pieces):
            body = bytes(SIZE // pieces)
            more = number < pieces - 1
            message: Message = {"type": "http.response.body", "body": body, "more_body": more}
            await send(message)

    return app


async def _ends(app: Application, asks: bytes, *, half_close: bool, stop: bool) -> bytes | None:
    """What a client over TCP gets that reads on after *stop*; None if its connection is cut."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as serving:
        client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        connection = Connection(await listener.accept(), 10.0, trusted=False)
        server = Server(app, connection, connection, 10.0, lambda: False)

        async def serve() -> None:
            # As the daemon's listener does it.
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                try:
                    await server.run()
                finally:
                    connection.socket.close()

        serving.start_soon(serve)
        async with client:
            await client.send_all(asks)
            if half_close:
                await client.send_eof()
            said, is_cut = b"", False
            with trio.CancelScope(shield=True), trio.fail_after(10):
                try:
                    while data := await client.receive_some():
                        said += data
                        if stop:
                            # As the daemon does when its time is over.
                            serving.cancel_scope.cancel()
                except trio.BrokenResourceError:
                    is_cut = True
    return None if is_cut else said


@pytest.mark.parametrize("pieces", [1, 16])
def test_who_takes_a_body_when_the_daemon_ends_sees_that_it_is_short(pieces: int) -> None:
    async def main() -> None:
        assert await _ends(answering(pieces), GET, half_close=False, stop=True) is None

    trio.run(main)


def test_a_body_that_a_half_closed_request_stops_is_cut() -> None:
    asks = b"GET /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"

    async def main() -> None:
        assert await _ends(UnreadBody(answering(16)), asks, half_close=True, stop=False) is None

    trio.run(main)


def test_a_body_that_is_shorter_than_was_said_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        app = answering(1, stated=SIZE + 1)
        assert await _ends(app, GET, half_close=False, stop=False) is None

    trio.run(main)
    assert "defect in a request" in caplog.text


def test_who_only_says_that_nothing_follows_gets_all_of_it() -> None:
    async def main() -> None:
        asks = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        said = await _ends(answering(16), asks, half_close=True, stop=False)
        assert said is not None
        assert len(said.partition(b"\r\n\r\n")[2]) == SIZE

    trio.run(main)
