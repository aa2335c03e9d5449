"""A request's body of known length, read from the connection itself and not through h11.

h11 keeps what it has not parsed in one buffer: each byte of a body is copied into it and out of
it, and then once more.  Where the head says how long the body is there is nothing to parse.
Invariant: not a byte behind the body is ever read here, so that the next request is found by
whoever parses it.
"""

from __future__ import annotations

from typing import Final

import h11
import trio
from trio.abc import ReceiveStream

from cafs.http.connection import Connection
from cafs.http.heads import NotHttpError

PIECE_MIN, PIECE = 64 << 10, 256 << 10
"""Bytes that are read at once; a unix socket holds about 200 KiB.

Not the most from the start: memory of that size is asked of the kernel each time, which costs
more than the bytes do where they come a few at a time.
"""
MANY: Final = 1 << 20
"""Bytes that a thread receives at once from a sender that is faster than the event loop."""


class KnownLength:
    """What is left of one body."""

    def __init__(self, stream: ReceiveStream, came: bytes, length: int) -> None:
        """*came* is the beginning of it, which was read together with the head, and of its
        *length* bytes at least one is still to come."""
        self._stream = stream
        self._came = came
        self._length = length
        self._left = length
        self._size = PIECE_MIN
        self._is_fast = False
        """Whether the sender fills the kernel's buffer faster than it is emptied here."""

    @property
    def ended(self) -> bool:
        """Whether all of it was given out."""
        return not self._left

    async def next(self) -> bytes:
        """The next bytes of it, at least one.  Not to be called at its end.

        Raises NotHttpError when the connection ends before the body does.
        """
        if self._came:
            data, self._came = self._came, b""
        else:
            try:
                data = await self._many() or await self._some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise NotHttpError(
                    "the connection ended before the body: "
                    f"{self._length - self._left} of {self._length} bytes came"
                )
        self._left -= len(data)
        return data

    async def _many(self) -> bytes:
        """What a fast sender sends without a pause, if this is one."""
        if not self._is_fast or self._left < PIECE or not isinstance(self._stream, Connection):
            return b""
        size = min(self._left, MANY)
        data = await self._stream.receive_many(size)
        self._is_fast = len(data) == size
        return data

    async def _some(self) -> bytes:
        """What is there, or comes next."""
        size = self._size
        data = bytes(await self._stream.receive_some(min(self._left, size)))
        self._is_fast = len(data) >= PIECE // 2
        if len(data) == size:
            self._size = min(2 * size, PIECE)
        return data


def known_length(
    http: h11.Connection, request: h11.Request, stream: ReceiveStream
) -> KnownLength | None:
    """The body of a request whose head *http* has just parsed, if it is a PUT's, of known length,
    and has not come whole.

    Then *http* must not be asked for more of this request, nor for the next one.
    """
    if request.method != b"PUT":
        return None
    # h11 lets only one value through, of digits, and Transfer-Encoding was refused beside it.
    length = next((int(value) for name, value in request.headers if name == b"content-length"), 0)
    if not length:
        return None
    came, ended = http.trailing_data
    if ended or length <= len(came):
        return None
    return KnownLength(stream, came, length)
