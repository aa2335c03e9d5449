"""One deflated member of a zip on its way out: what it inflates to, or the bytes as they lie.

Decides by the member's beginning, so that no long one is held in memory.  Invariant: the sink is
told either of raw bytes and then of the stream that they make, or of plain bytes, which are the
member's own; never of both.  Runs in worker threads, one call at a time.
"""

from __future__ import annotations

import zlib
from typing import Final, Protocol

from cafs.archives.deflated import DeflatedStream, Guesser, NoEngineError, Stream
from cafs.archives.gzip_format import RAW_MAX
from cafs.archives.segments import LeftError

STEP: Final = 16 << 10


class MemberSink(Protocol):
    """Takes what a member consists of."""

    def raw(self, data: bytes) -> None:
        """The next bytes that came out of it.  Raises LeftError, DiskFullError and its kin."""

    def made(self, stream: Stream) -> None:
        """The raw bytes were all, and this is the stream that an engine makes of them."""

    def plain(self, data: bytes, *, final: bool) -> None:
        """The next bytes of a member that is stored as it lies."""


class DeflatedMember:
    """Takes one member."""

    def __init__(
        self, start: int, guesser: Guesser, sink: MemberSink, length: int | None = None
    ) -> None:
        """*start*: where its raw bytes begin in the inner blob; *length*: its own, if known."""
        self._sink = sink
        self._length = length
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._stream: DeflatedStream | None = DeflatedStream(start, guesser, sink.raw)
        self._begun = bytearray()
        """Compressed bytes from before it was decided."""
        self.seen = 0
        """Bytes of the member so far."""
        self.inflated = 0
        """Those of them that hold what came out: a few may hold so much that others wait."""
        self.over = False
        """Whether the last byte of its stream was seen."""

    @property
    def left_plain(self) -> bool:
        """Whether it is known that it is stored as it lies."""
        return self._stream is None

    def feed(self, data: memoryview) -> int:
        """The next bytes; how many are the member's, which are all but behind its end.

        Raises LeftError, DiskFullError and its kin.
        """
        taken = 0
        for low in range(0, len(data), STEP):
            if self.over and self._length is None:
                break
            taken += self._feed(bytes(data[low : low + STEP]))
        return taken

    def _feed(self, data: bytes) -> int:
        stream = self._stream
        if stream is None:
            self.seen += len(data)
            self._sink.plain(data, final=False)
            return len(data)
        if not stream.known:
            self._begun += data
        stream.feed(data)
        behind = 0
        try:
            behind = self._inflate(stream, data)
            if not self.over:
                stream.advance()
        except (zlib.error, NoEngineError):
            if stream.known:
                raise LeftError("a member that is damaged") from None
            self._leave()
        if stream.known:
            self._begun.clear()
        self.seen += len(data) - behind
        return len(data) - behind

    def _inflate(self, stream: DeflatedStream, data: bytes) -> int:
        """How many of the bytes are behind the end of the stream."""
        end = self.seen + len(data)
        while data:
            raw = self._inflater.decompress(data, RAW_MAX)
            self.inflated = end - len(self._inflater.unconsumed_tail or self._inflater.unused_data)
            if raw:
                stream.raw(raw)
            data = self._inflater.unconsumed_tail
            if self._inflater.eof:
                break
        while not self._inflater.eof and (raw := self._inflater.decompress(b"", RAW_MAX)):
            stream.raw(raw)
        behind = len(self._inflater.unused_data)
        if behind and self._length is not None:
            raise zlib.error("bytes behind the end of the stream")
        self.over = self._inflater.eof
        if behind and not stream.known:
            del self._begun[len(self._begun) - behind :]
        return behind

    def _leave(self) -> None:
        self._stream = None
        begun, self._begun = bytes(self._begun), bytearray()
        self._sink.plain(begun, final=False)

    def end(self) -> None:
        """That was all of it.  Raises LeftError, DiskFullError and its kin."""
        stream = self._stream
        if stream is not None and not self.over and stream.known:
            raise LeftError("a member that is damaged")
        if stream is not None and self.over:
            try:
                self._sink.made(stream.end(self.seen))
            except NoEngineError:
                self._leave()
        elif stream is not None:
            self._leave()
        if self._stream is None:
            self._sink.plain(b"", final=True)
