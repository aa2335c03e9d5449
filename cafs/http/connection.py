"""One connection below the HTTP server: its time limits, and a way to cut it off.

Invariant: an answer that could not be finished never looks finished.  abort() resets a TCP
connection, and under TLS leaves the close-notify out, so that no client takes a short body for
a whole one.
"""

from __future__ import annotations

import socket
import struct

import trio
from trio.abc import HalfCloseableStream

_PIECE = 256 << 10
"""Bytes that must leave within the time limit."""
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Connection(HalfCloseableStream):
    """A socket's stream.  The interface is trio's, and *socket* is what hypercorn looks at."""

    def __init__(self, stream: trio.SocketStream, timeout_s: float, *, trusted: bool) -> None:
        self._stream = stream
        self._timeout = timeout_s
        self.socket = stream.socket
        self.trusted = trusted
        """nginx is at the other end, and has checked address and password."""
        self.broken = False
        """There is nobody at the other end any more."""
        self.received = 0
        """Bytes that came, TLS included."""
        self.sent = 0
        """Bytes that went, TLS included."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; a client that takes nothing for too long is cut off."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            if self.broken:
                raise trio.BrokenResourceError("the connection was cut")
            piece = view[start : start + _PIECE]
            with trio.move_on_after(self._timeout) as scope:
                try:
                    await self._stream.send_all(piece)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.broken = True
                    raise
            if scope.cancelled_caught:
                self.abort()
                raise trio.BrokenResourceError("the client takes nothing any more")
            self.sent += len(piece)

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See trio.abc.ReceiveStream."""
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.broken = True
            raise
        self.received += len(data)
        return data

    async def send_eof(self) -> None:
        """See trio.abc.HalfCloseableStream."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close in order."""
        self.broken = True
        await self._stream.aclose()

    def abort(self) -> None:
        """Cut the connection so that the other end notices."""
        if not self.broken:
            self.broken = True
            if self.socket.family != socket.AF_UNIX:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self.socket.close()
