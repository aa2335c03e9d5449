"""One connection below the HTTP server: its time limits, and a way to cut it off.

Invariant: an answer that could not be finished never looks finished.  abort() resets a TCP
connection, and under TLS leaves the close-notify out, so that no client takes a short body for
a whole one.
"""

from __future__ import annotations

import os
import socket
import struct

import trio
from trio.abc import HalfCloseableStream

from cafs import _receive

_PIECE = 256 << 10
"""Bytes that must leave within the time limit."""
_IN_HASTE_MAX = 8
"""Times in a row that something is read or sent without letting others have their turn."""
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
_PATIENCE_MS = 2
"""How long a thread waits for the next bytes: it must not wait for who is slow ..."""
_MOST_MS = 20
"""... and how long for all: nothing ends it before."""
_RECEIVERS = 2
"""Threads that receive at once."""
_LINGER_S = 30.0
_LINGER_SILENT_S = 5.0
"""How long it is listened after the last answer: in all, and to a client that sends nothing; as
with nginx (lingering_time, lingering_timeout)."""

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("receivers")


def _receivers() -> trio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_RECEIVERS)
        _limiter.set(limiter)
        return limiter


class Connection(HalfCloseableStream):
    """A socket's stream.  The interface is trio's, and
    *socket* is what addresses are asked of."""

    def __init__(self, stream: trio.SocketStream, timeout_s: float, *, trusted: bool) -> None:
        self._stream = stream
        self._timeout = timeout_s
        self.socket = stream.socket
        self.trusted = trusted
        """nginx is at the other end, and has checked address and password."""
        self.broken = False
        """There is nobody at the other end any more."""
        self.gone = False
        """Because the client went away: it was not us who cut it."""
        self.too_slow = False
        """Because the client took nothing for too long."""
        self._in_haste = 0
        self.received = 0
        """Bytes that came, TLS included."""
        self.sent = 0
        """Bytes that went, TLS included."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; a client that takes nothing for too long is cut off."""
        view = memoryview(data)
        sent = await self._send_now(view) if len(view) <= _PIECE else 0
        for start in range(sent, len(view), _PIECE):
            if self.broken:
                raise trio.BrokenResourceError("the connection was cut")
            piece = view[start : start + _PIECE]
            with trio.move_on_after(self._timeout) as scope:
                try:
                    await self._stream.send_all(piece)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.lost()
                    raise
            if scope.cancelled_caught:
                self.too_slow = not self.broken
                self.abort()
                raise trio.BrokenResourceError("the client takes nothing any more")
            self.sent += len(piece)

    # trio looks at all other tasks with every call, which costs as much as the call itself.  So
    # what can be done at once is done beside it, but not without end.

    async def _send_now(self, data: memoryview) -> int:
        """How many bytes could be sent without waiting."""
        if self.broken or not await self._may_hasten():
            return 0
        try:
            sent = os.write(self.socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.lost()
            raise trio.BrokenResourceError(error.strerror) from error
        self.sent += sent
        return sent

    async def _receive_now(self, max_bytes: int | None) -> bytes | None:
        """What is there already, or None."""
        if max_bytes is None or not await self._may_hasten():
            return None
        try:
            return os.read(self.socket.fileno(), max_bytes)
        except BlockingIOError:
            # The others have their turn while it waits.
            self._in_haste = 0
            return None
        except OSError as error:
            raise trio.BrokenResourceError(error.strerror) from error

    async def _may_hasten(self) -> bool:
        self._in_haste += 1
        if self._in_haste > _IN_HASTE_MAX:
            self._in_haste = 0
            await trio.lowlevel.checkpoint()
        return self.socket.fileno() >= 0

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See trio.abc.ReceiveStream."""
        try:
            data = await self._receive_now(max_bytes)
            if data is None:
                data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.lost()
            raise
        self.received += len(data)
        return data

    async def receive_many(self, size: int) -> bytes:
        """Up to *size* bytes of what comes without a pause; none: receive_some() is to wait.

        Not under TLS.  For a sender that has filled the kernel's buffer more than once: a thread
        empties it at once, and here is one turn for all of it instead of one for each buffer.
        """
        limiter = _receivers()
        if self.broken or not limiter.available_tokens:
            return b""
        try:
            # Of its own: the socket may be closed meanwhile, and its number be given to another.
            descriptor = os.dup(self.socket.fileno())
        except OSError:
            # Too many are open: it goes without.
            return b""
        try:
            data = await trio.to_thread.run_sync(
                _receive.many, descriptor, size, _PATIENCE_MS, _MOST_MS, limiter=limiter
            )
        except OSError as error:
            self.lost()
            raise trio.BrokenResourceError(error.strerror) from error
        finally:
            os.close(descriptor)
        self.received += len(data)
        return data

    async def send_eof(self) -> None:
        """See trio.abc.HalfCloseableStream."""
        await self._stream.send_eof()

    async def linger(self) -> None:
        """Say that nothing follows, and drop what still comes until the other end closes.

        Not for ever.  Who closes while the client sends makes the kernel reset the connection,
        and then the client loses the answer that it has not read yet (RFC 9112, section 9.6).
        """
        end = trio.current_time() + _LINGER_S
        silent_s = min(_LINGER_SILENT_S, self._timeout)
        try:
            await self._stream.send_eof()
            with trio.CancelScope() as scope:
                data: bytes | bytearray = b"-"
                while data:
                    scope.deadline = min(trio.current_time() + silent_s, end)
                    data = await self._stream.receive_some(_PIECE)
                    self.received += len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # It has heard enough.
            pass

    async def aclose(self) -> None:
        """Close in order."""
        self.broken = True
        await self._stream.aclose()

    def lost(self) -> None:
        """The client was found to be away."""
        self.gone = self.gone or not self.broken
        self.broken = True

    def abort(self) -> None:
        """Cut the connection so that the other end notices."""
        if not self.broken:
            self.broken = True
            if self.socket.family != socket.AF_UNIX:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self.socket.close()
