"""One connection of the HTTP server: hypercorn's HTTP/1.1, held to what nginx would show.

hypercorn offers more than is wanted here (HTTP/2 by upgrade), says less (no reason phrases) and
starts two tasks a request to watch idle connections.  So its protocol is used, and its
connections are not.  Invariant: a connection ends when it was idle for too long, when the
daemon ends and nothing is under way, or when either side closes it; nothing of it is left.
"""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, H11SendableEvent
from hypercorn.utils import parse_socket_addr

from cafs.http.connection import Connection

READ_MIN, READ_MAX = 64 << 10, 512 << 10
"""Bytes that are read at once; each read costs a pass through all layers, so while a body fills
them reads become longer."""
QUEUE_MAX = 3
"""Reads that may wait for the application."""
HANDSHAKE_S = 30.0

_SPELLED = {b"etag": b"ETag", b"www-authenticate": b"WWW-Authenticate"}
_NEVER = float("inf")


class Http11(H11Protocol):
    """HTTP/1.1 without ways out of it."""

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer."""
        if not isinstance(event, Response) or event.status_code < 200:
            await super().stream_send(event)
            return
        headers = [(_spelled(name), value) for name, value in event.headers]
        headers += [(_spelled(name), value) for name, value in self.config.response_headers("h11")]
        if self.keep_alive_requests >= self.config.keep_alive_max_requests:
            headers.append((b"Connection", b"close"))
        status = event.status_code
        await self._send_h11_event(
            h11.Response(status_code=status, headers=headers, reason=_reason(status))
        )

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay with HTTP/1.1 whatever a client would like to upgrade to."""

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        if isinstance(event, h11.InformationalResponse):
            status = event.status_code
            event = h11.InformationalResponse(
                status_code=status, headers=[], reason=_reason(status)
            )
        await super()._send_h11_event(event)


@cache
def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


@cache
def _spelled(name: bytes) -> bytes:
    # The names are ours, so there are few.
    return _SPELLED.get(name) or name.title()


class Server:
    """Serves one connection to its end."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        connection: Connection,
        stream: Connection | trio.SSLStream[Connection],
    ) -> None:
        """*stream* is the connection itself, or TLS over it."""
        self._app = app
        self._config = config
        self._context = context
        self._connection = connection
        self._stream = stream
        self._lock = trio.Lock()
        self._idle = True
        # An idle connection may last until then, however slowly a request dribbles in.
        self._until = trio.current_time() + config.keep_alive_timeout
        self._reading = trio.CancelScope()

    async def run(self) -> None:
        """Return when the connection is closed."""
        socket = self._connection.socket
        encrypted = isinstance(self._stream, trio.SSLStream)
        try:
            if isinstance(self._stream, trio.SSLStream):
                with trio.move_on_after(HANDSHAKE_S) as scope:
                    await self._stream.do_handshake()
                if scope.cancelled_caught:
                    return
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
            state: Any = {"connection": self._connection}
            async with TaskGroup() as tasks:
                self._protocol = Http11(
                    self._app,
                    self._config,
                    self._context,
                    tasks,
                    ConnectionState(state),
                    encrypted,
                    client,
                    server,
                    self._send,
                )
                await self._read()
        except OSError:
            # It was reset.
            pass
        finally:
            await self._close()

    def end_if_idle(self) -> None:
        """The daemon is to end: wait for nothing that has not begun."""
        if self._idle:
            self._reading.cancel()

    async def _read(self) -> None:
        size = READ_MIN
        while True:
            self._reading = trio.CancelScope(deadline=self._until if self._idle else _NEVER)
            data: bytes | bytearray = b""
            with self._reading:
                try:
                    data = await self._stream.receive_some(size)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
            if self._reading.cancelled_caught:
                break
            if len(data) == size:
                size = min(2 * size, READ_MAX)
            elif len(data) < size // 4:
                size = READ_MIN
            await self._protocol.handle(RawData(bytes(data)))
            if not data:
                break
        await self._protocol.handle(Closed())
        if self._reading.cancelled_caught:
            await self._close()

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            async with self._lock:
                try:
                    await self._stream.send_all(event.data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._protocol.handle(Closed())
        elif isinstance(event, Closed):
            await self._close()
            await self._protocol.handle(Closed())
        elif isinstance(event, Updated):
            self._idle = event.idle
            if event.idle:
                self._until = trio.current_time() + self._config.keep_alive_timeout
                self._reading.deadline = self._until

    async def _close(self) -> None:
        if self._connection.broken:
            # There is nobody to say good-bye to, and under TLS nobody must hear it.
            self._connection.abort()
            return
        if not isinstance(self._stream, trio.SSLStream):
            try:
                await self._stream.send_eof()
            except (
                trio.BrokenResourceError,
                trio.ClosedResourceError,
                trio.BusyResourceError,
                OSError,
            ):
                # The client was quicker.
                pass
        await self._stream.aclose()
