"""What an engine is: something that makes a deflate stream from raw bytes, always the same.

Owns the two protocols that all engines keep, and how an engine's parameters are packed into
the 16 bits that a recipe has for them.  Invariant: what a compressor gives back depends on the
bytes it was fed and on nothing else: not on how they were cut into calls, not on time.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from cafs.archives.program import Program
from cafs.errors import EngineError

Buffer = bytes | bytearray | memoryview
"""What can be fed; a memoryview must be of bytes."""

FEED_SIZE: Final = 256 << 10
"""Bytes that are best fed at once: with whole multiples nothing is copied on the way in."""


class Params(NamedTuple):
    """How an engine was told to compress; zero where it knows no such thing."""

    level: int
    """1 to 9, from fast to small."""
    mem_level: int = 0
    """zlib's memLevel, 1 to 9: how much memory it may take, and so how long its blocks are."""
    strategy: int = 0
    """zlib's strategy, 0 to 4; 0 is the default one."""

    def pack(self) -> int:
        """Level in bits 0-3, memLevel in 4-7, strategy in 8-10: as docs/format.md states it."""
        return self.level | self.mem_level << 4 | self.strategy << 8

    @classmethod
    def unpack(cls, packed: int) -> Params:
        """The reverse; bits that mean nothing yet are an :class:`EngineError`."""
        if not 0 <= packed < 1 << 11:
            raise EngineError(f"engine parameters {packed:#06x} mean nothing to this cafs")
        return cls(packed & 15, packed >> 4 & 15, packed >> 8)


class Compressor(Protocol):
    """One deflate stream in the making.  One thread at a time; every method blocks.

    Whoever made it calls close(), after an error too: there may be a process behind it.
    """

    def feed(self, data: Buffer) -> bytes:
        """Take the next raw bytes; return what has come out by now, maybe nothing.

        *data* is not kept longer than the call.  Raises :class:`EngineError`.
        """
        ...

    def finish(self) -> bytes:
        """There are no more bytes: return all that is left of the stream.

        Raises :class:`EngineError`.  Then only close() may be called.
        """
        ...

    def cpu_s(self) -> float:
        """Seconds of a processor that it has taken so far."""
        ...

    def close(self) -> None:
        """Let go of everything, at any time and as often as one likes."""
        ...


class Engine(Protocol):
    """A program or library that makes deflate streams.  Any thread."""

    @property
    def kind(self) -> str:
        """Which sort of engine: what its parameters mean."""
        ...

    @property
    def version(self) -> str:
        """What the program says of itself, for people."""
        ...

    @property
    def program(self) -> Program:
        """The very bytes that are run."""
        ...

    def compressor(self, params: int, *, background: bool) -> Compressor:
        """Begin a raw deflate stream (RFC 1951) with packed :class:`Params`.

        *background* says that nobody waits: a process of its own stands back for all others.
        Raises :class:`EngineError` when the parameters are not this engine's, or when it cannot
        be started.  Blocks for about a millisecond.
        """
        ...
