"""Content that arrives in order: what of it waits to be cut, and the digests of the whole.

Invariant: the batches of a stream are cut in the order of their turns, each from where the one
before has ended; storing what was cut, which takes as long, has no order, so that one batch is
stored while the next is cut.  A batch that could not be stored is forgotten together with all
that came after it, and the stream is as it was before.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from cafs import _digest
from cafs.blobs import codec
from cafs.blobs.chunker import DIGEST_SIZE
from cafs.blobs.digests import Digests
from cafs.blobs.ingest import Ingest, Pieces, Slice
from cafs.blobs.recipe import Part
from cafs.errors import CafsError


class Fed(NamedTuple):
    """What a batch added to a stream."""

    parts: list[Part]
    length: int
    """Bytes that the parts cover."""
    rewound: int
    """The first of those bytes were covered before: the last part is replaced."""
    digests: Digests | None
    """Of all that was fed, when the batch was the last and the stream began at byte 0."""


class _State(NamedTuple):
    """What cutting goes on from."""

    left: bytes
    """Bytes that are not cut yet, or (behind the end of content) were cut as the last part."""
    rewound: int
    """How many of them are covered by that part."""
    compressible: bool | None


class Batch:
    """Bytes on their way into a stream."""

    __slots__ = ("before", "buffers", "final", "size", "start", "stream", "turn")

    def __init__(self, stream: IngestStream, buffers: list[bytes], final: bool) -> None:
        """*final* says that the content ends with them.  Comes after all earlier batches."""
        self.stream = stream
        self.buffers = buffers
        self.final = final
        self.size = sum(map(len, buffers))
        self.start = stream.position
        self.turn = stream.turns
        self.before: _State | None = None
        stream.position += self.size
        stream.turns += 1


class IngestStream:
    """One content.

    It begins at byte 0, or (appending) with *tail*, the bytes of the last part of what is there
    already; *head*, the first bytes of the content, then decides whether compression is tried,
    and there are no digests of the whole.
    """

    def __init__(self, head: bytes = b"", tail: bytes = b"") -> None:
        self.whole = not head
        """Whether there will be digests of the whole content."""
        self.aside = False
        """Whether a thread of its own hashes it: then hash() is called, not digest()."""
        self.position = 0
        """Bytes in batches so far."""
        self.turns = 0
        """Batches so far."""
        compressible = not codec.looks_compressed(head) if head else None
        self._state = _State(tail, len(tail), compressible)
        self._turn = 0
        self._next_turn = threading.Condition()
        self._both = _digest.Both()
        self._hashed = 0
        self._late = b""
        """Bytes behind those, if they may be the whole content in one piece."""

    # -- cutting: workers --------------------------------------------------------------------

    @contextmanager
    def cutting(self, batch: Batch) -> Iterator[None]:
        """Within the block it is this batch's turn."""
        with self._next_turn:
            # The one before was taken from the same queue earlier, so somebody is at it.
            self._next_turn.wait_for(lambda: self._turn == batch.turn)
        try:
            batch.before = self._state
            yield
        finally:
            with self._next_turn:
                self._turn += 1
                self._next_turn.notify_all()

    def slice(self, joined: bytes, final: bool) -> Slice:
        """What must be cut when *joined* comes next; advance() follows.  Within cutting()."""
        left, rewound, compressible = self._state
        if compressible is None and (left or joined):
            head = left[:64] + joined[: max(0, 64 - len(left))]
            compressible = not codec.looks_compressed(head)
            self._state = _State(left, rewound, compressible)
        return Slice(joined, final, bool(compressible), left)

    def advance(self, given: Slice, cut: Pieces) -> int:
        """Take note of how a slice was cut; how many bytes in front were covered before.

        Behind the end of the content everything is covered.  If more comes after that, the last
        part is made anew, so that what is appended in small pieces is cut as if it had come at
        once.
        """
        rewound, compressible = self._state.rewound, self._state.compressible
        if given.final:
            last = bytes(cut.pieces[-1]) if cut.pieces else b""
            self._state = _State(last, len(last), compressible)
        else:
            behind = cut.length - len(given.left)
            left = given.data[behind:] if behind >= 0 else given.left[cut.length :] + given.data
            self._state = _State(left, 0, compressible)
        return rewound

    # -- hashing the whole: any thread, but in the order of the bytes -------------------------

    def digest(self, joined: bytes, final: bool, piece_digests: bytes) -> Digests | None:
        """Hash the next bytes of the whole; the digests if the content ends there.

        *piece_digests* are those of what was cut of it: if one piece is the whole content its
        digest need not be computed again.
        """
        if not self.whole or self.aside:
            return None
        self._late += joined
        if final and len(piece_digests) == DIGEST_SIZE and not self._hashed:
            sha1 = hashlib.sha1(self._late, usedforsecurity=False).digest()
            return Digests(piece_digests, sha1)
        self._catch_up()
        return self.digests() if final else None

    def hash(self, buffers: Sequence[bytes], start: int, idle: Callable[[], bool]) -> None:
        """Hash buffers, whose first byte is byte *start* of the content, as far as is new.

        For a thread of its own, beside the cutting: what had to be cut again after a failure
        comes here twice.  *idle*, asked for each buffer: only while a processor has nothing else
        to do.
        """
        try:
            self._catch_up()
            for buffer in buffers:
                fresh = memoryview(buffer)[max(0, self._hashed - start) :]
                self._both.update([fresh], idle())
                self._hashed += len(fresh)
                start += len(buffer)
        except BaseException:
            # It must not be missing in silence: all of it is read back some time.
            self.whole = False
            raise

    def digests(self) -> Digests:
        """The digests of all that was hashed.  Raises CafsError if something was not."""
        if not self.whole:
            raise CafsError("a part of the content could not be hashed")
        self._catch_up()
        return Digests(*self._both.digests())

    def _catch_up(self) -> None:
        self._both.update([self._late])
        self._hashed += len(self._late)
        self._late = b""

    # -- the event loop ----------------------------------------------------------------------

    def back_to_before(self, batch: Batch) -> None:
        """Forget a batch and all that came after it.  None of them may be under way any more."""
        if batch.before is not None:
            self._state = batch.before
        self.position = batch.start
        self.turns = self._turn = batch.turn


def feed_all(ingest: Ingest, batches: Sequence[Batch]) -> list[Fed]:
    """Cut and store batches of several streams at once.

    Raises DiskFullError and its kin: then nothing of them is stored, and each of the streams
    has to go back to before its batch.
    """
    joined = []
    cut = []
    rewound = []
    for batch in batches:
        with batch.stream.cutting(batch):
            data = join(batch.buffers)
            given = batch.stream.slice(data, batch.final)
            pieces = ingest.split(given)
            rewound.append(batch.stream.advance(given, pieces))
        joined.append(data)
        cut.append(pieces)
    stored = ingest.store(cut)
    return [
        Fed(parts, length, back, batch.stream.digest(data, batch.final, digests))
        for batch, data, back, (parts, length, digests) in zip(
            batches, joined, rewound, stored, strict=True
        )
    ]


def join(buffers: Sequence[bytes]) -> bytes:
    """The buffers as one, without a copy if it is only one."""
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)
