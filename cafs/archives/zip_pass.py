"""A zip file read from start to end: those members that an engine makes into an inner blob.

The others, and all between them, are stored as they lie: members that are no deflate stream,
or one that no engine makes, have the chunks that they had before.  Invariant: the segments, in
order, are the whole file.  Runs in worker threads, one call at a time; blocks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cafs.archives.deflated import DeflatedStream, NoEngineError, Stream
from cafs.archives.inner import InnerWriter
from cafs.archives.member import STEP, DeflatedMember
from cafs.archives.segments import Bounds, Segment, UnmadeError
from cafs.archives.trial import Guess, Sample
from cafs.archives.zip_format import Member
from cafs.blobs.recipe import Part

SHORT: Final = 4 << 10
"""What lies between members is gathered if it is no longer than this: local headers."""
WHOLE_MAX: Final = 1 << 20
"""Longer members are decided about by their beginning, so that they are not held in memory."""
_MARK: Final = -1
"""Kind of a part that stands for a stream."""

Guesser = Callable[[Sample], list[Guess]]


class ZipPass:
    """Takes one file, whose members are known."""

    def __init__(
        self,
        inner: InnerWriter,
        outer: InnerWriter,
        guesser: Guesser,
        bounds: Bounds,
        members: Sequence[Member],
        size: int,
    ) -> None:
        self._inner = inner
        self._outer = outer
        self._guesser = guesser
        self._bounds = bounds
        self._members = iter(members)
        self._size = size
        self._member = next(self._members, None)
        self._at = 0
        self._held = bytearray()
        """Of the member, or of what lies before it."""
        self._long: DeflatedMember | None = None
        self._streams: list[Stream] = []
        self._left_bytes = 0
        """Bytes of members that no engine makes."""
        self._inner_size = 0

    def push(self, data: bytes) -> Iterator[None]:
        """The next bytes of the file, step by step; take all steps before the next bytes.

        A step is some tenths of a second of work at most, or a second where an engine is looked
        for.  Raises LeftError, DiskFullError and its kin.
        """
        view = memoryview(data)
        while view:
            member = self._member
            border = self._size if member is None else member.offset
            if self._at < border:
                taken = self._between(view[: border - self._at], border)
            else:
                assert member is not None
                left = member.offset + member.length - self._at
                taken = self._of_member(view[: min(left, STEP)], member)
            self._at += taken
            view = view[taken:]
            yield

    def _between(self, view: memoryview, border: int) -> int:
        """Bytes before the next member; how many were taken."""
        self._held += view
        ends = self._at + len(view) == border
        if ends and len(self._held) <= SHORT:
            self._outer.header(bytes(self._held))
            self._held.clear()
        elif ends or len(self._held) > SHORT:
            self._outer.data(bytes(self._held), final=ends)
            self._held.clear()
        return len(view)

    def _of_member(self, view: memoryview, member: Member) -> int:
        ends = self._at + len(view) == member.offset + member.length
        if member.length > WHOLE_MAX or member.raw_length > WHOLE_MAX:
            if self._long is None:
                self._long = DeflatedMember(self._inner_size, self._guesser, self, member.length)
            self._long.feed(view)
            if ends:
                self._long.end()
                self._inner.data(b"", final=True)
                self._long = None
        else:
            self._held += view
            if ends:
                whole = bytes(self._held)
                self._held.clear()
                self._short(whole)
        if ends:
            self._member = next(self._members, None)
        return len(view)

    def _short(self, whole: bytes) -> None:
        """A member that is all there."""
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            raw = inflater.decompress(whole, WHOLE_MAX + 1)
        except zlib.error:
            raw = b""
        sound = inflater.eof and not inflater.unused_data and 0 < len(raw) <= WHOLE_MAX
        if sound:
            stream = DeflatedStream(self._inner_size, self._guesser, self.raw)
            stream.feed(whole)
            try:
                stream.raw(raw)
                self.made(stream.end(len(whole)))
                self._inner.data(b"", final=True)
                return
            except NoEngineError:
                pass
        self.plain(whole, final=True)

    def raw(self, data: bytes) -> None:
        """The next bytes of what is inside a member that an engine makes."""
        self._inner_size += len(data)
        self._bounds.check(self._inner_size, self._size)
        self._inner.data(data)

    def made(self, stream: Stream) -> None:
        """An engine makes the member."""
        self._outer.fill(self._outer.reserve(), [Part(_MARK, 1, len(self._streams), b"")])
        self._streams.append(stream)

    def plain(self, data: bytes, *, final: bool) -> None:
        """Bytes of a member that is stored as it lies."""
        self._left_bytes += len(data)
        self._outer.data(data, final=final)

    def end(self) -> Iterator[None]:
        """The file has ended; as push()."""
        yield

    def finish(self) -> list[Segment]:
        """What it consists of, behind end().  Raises UnmadeError, DiskFullError and its kin."""
        made = sum(length for stream in self._streams for length, _ in stream.pieces)
        if made <= self._left_bytes or made * 2 < self._size:
            raise UnmadeError("no engine makes most of its members")
        self._outer.finish()
        return [
            self._streams[part.ref] if part.kind == _MARK else part
            for part in self._outer.take_all()
        ]
