"""The engine that makes most droplets: GNU gzip, run as a program.

GNU gzip's deflate is its own (it ends blocks where zlib does not), and it has no library; so
the program is run, and its header (RFC 1952, section 2.3) and trailer are taken off.

Invariant: it is always fed whole pages, from the first byte of the stream on.  gzip's output is
a function of its input only as long as no read(2) of it ends within the last 262 bytes of its
64 KiB window: then it moves its window on a byte earlier than otherwise, and forgets a match.
A pipe gives what it has, so how it is filled must not leave such an end to chance
(docs/decisions/0012-engines.md).
"""

from __future__ import annotations

import re
from typing import Final

from cafs.archives.engine import Buffer, Params
from cafs.archives.piped import PATIENCE_S, Piped
from cafs.archives.program import Program
from cafs.errors import EngineError

KIND: Final = "gnu-gzip"
HEADER_SIZE: Final = 10
TRAILER_SIZE: Final = 8
PAGE: Final = 4096
_NICENESS: Final = 19
_SLACK: Final = 64 << 10
_VERSION = re.compile(rb"gzip \d[\w.+-]{0,40}")


class GnuGzip:
    """One gzip program.  Any thread."""

    kind: Final = KIND

    def __init__(self, program: Program, version: str, patience_s: float = PATIENCE_S) -> None:
        self.program = program
        self.version = version
        self._patience_s = patience_s

    @classmethod
    def identify(cls, program: Program, patience_s: float = PATIENCE_S) -> GnuGzip:
        """The engine that a program is.

        Raises :class:`EngineError` when it cannot be run, or does not call itself GNU gzip:
        the gzip of BusyBox, of pigz and of Apple have other names for themselves.  Blocks.
        """
        piped = Piped(program, ["gzip", "--version"], patience_s=patience_s)
        try:
            piped.allowed = _SLACK
            said = b"".join(piped.finish())
        finally:
            piped.close()
        first = said.split(b"\n", 1)[0]
        if not _VERSION.fullmatch(first):
            raise EngineError(f"{program.path} is not GNU gzip")
        return cls(program, first.decode(), patience_s)

    def compressor(self, params: int, *, background: bool) -> GnuGzipCompressor:
        """Start the program; see :class:`cafs.archives.engine.Engine`."""
        level, mem_level, strategy = Params.unpack(params)
        if not 1 <= level <= 9 or mem_level or strategy:
            raise EngineError(f"GNU gzip knows no parameters {params:#06x}")
        return GnuGzipCompressor(
            Piped(
                self.program,
                ["gzip", "-n", f"-{level}", "-c"],
                niceness=_NICENESS if background else 0,
                patience_s=self._patience_s,
            )
        )


class GnuGzipCompressor:
    """A running gzip; see :class:`cafs.archives.engine.Compressor`."""

    def __init__(self, piped: Piped) -> None:
        self._piped = piped
        self._waiting = b""
        """What does not fill a page yet."""
        self._header_left = HEADER_SIZE
        self._held = b""
        """The last bytes that came: they may be the trailer's."""
        self._size = 0
        piped.allowed = _SLACK

    def feed(self, data: Buffer) -> bytes:
        """Write the pages that are full now; what has come out."""
        view = memoryview(data)
        size = len(view)
        self._size += size
        # Incompressible bytes grow by a few in each block of 32 KiB.
        self._piped.allowed += size + size // 8
        waiting = self._waiting
        if len(waiting) + size < PAGE:
            self._waiting = waiting + view
            return b""
        missing = -len(waiting) % PAGE
        behind = missing + (size - missing) // PAGE * PAGE
        self._waiting = bytes(view[behind:])
        if not waiting:
            return self._strip(self._piped.feed(view[:behind]))
        return self._strip(
            self._piped.feed(b"".join((waiting, view[:missing])), view[missing:behind])
        )

    def finish(self) -> bytes:
        """Write the rest and wait for the end; all that is left of the stream."""
        got = self._piped.feed(self._waiting)
        self._waiting = b""
        got += self._piped.finish()
        stream = self._strip(got)
        size = int.from_bytes(self._held[4:], "little")
        if self._header_left or len(self._held) < TRAILER_SIZE or size != self._size & 0xFFFFFFFF:
            raise EngineError("gzip ended before its output did")
        return stream

    def cpu_s(self) -> float:
        """Seconds of a processor that the program has taken so far."""
        return self._piped.cpu_s()

    def close(self) -> None:
        """End the program."""
        self._piped.close()

    def _strip(self, got: list[bytes]) -> bytes:
        """The output without header, and without what may be the trailer."""
        if not got:
            return b""
        came = self._held + b"".join(got)
        if self._header_left:
            if len(came) < HEADER_SIZE:
                self._held = came
                return b""
            # Deflate, and no optional field, so that this is all of the header.
            if came[:4] != b"\x1f\x8b\x08\x00":
                raise EngineError("gzip made something that is not gzip")
            came = came[HEADER_SIZE:]
            self._header_left = 0
        self._held = came[-TRAILER_SIZE:]
        return came[:-TRAILER_SIZE]
