"""From the inflated bytes of an archive to stored chunks and the parts of an inner blob.

A member's bytes are cut just as a file of its own would be, so that they meet the same bytes
elsewhere as the same chunks.  Headers differ with every staging but are alike among themselves:
they are gathered, with members too small for a chunk of their own, into shared chunks that
compress well, and slices refer to these.  Invariant: the parts, in order, are the bytes that
came in, and each part's chunk is pinned once for it, until who takes the part has it counted.

Runs in worker threads, one call at a time; blocks.
"""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from itertools import islice
from typing import Final

from cafs.archives.segments import LeftError
from cafs.blobs import codec, recipe
from cafs.blobs.ingest import Ingest, Pieces, Slice
from cafs.blobs.recipe import Part
from cafs.types import ChunkNo

GATHERED: Final = 64 << 10
"""Bytes of headers in one chunk: a read of a single header decodes all of it."""
WAITING_MAX: Final = 200_000
"""Stretches that wait in memory behind a place that is open: some hundred bytes each."""
BATCH: Final = 1 << 20
"""Bytes that are hashed, compressed and stored at once."""


class _Spot:
    """Bytes that wait in the gathered ones: where they lie there, and their slot."""

    __slots__ = ("length", "offset", "slot")

    def __init__(self, slot: int, offset: int, length: int) -> None:
        self.slot = slot
        self.offset = offset
        self.length = length


class InnerWriter:
    """Stores one inner blob."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._gathered_max = min(GATHERED, ingest.params.max_size)
        self._slots: deque[list[Part]] = deque()
        """What is in order; empty where it is not stored yet."""
        self._taken = 0
        """Slots that were in front of them."""
        self._open: list[int] = []
        """Places that were reserved and are not filled yet, in order."""
        self._ready: list[Part] = []
        self._gathered = bytearray()
        self._spots: list[_Spot] = []
        self._border = False
        """Whether no part may reach from what came to what comes."""
        self._batch: list[tuple[int, Pieces]] = []
        self._batch_bytes = 0
        self._left = b""
        """Bytes of the member that are not cut yet."""
        self._compressible: bool | None = None
        self._sha256 = hashlib.sha256()
        self.size = 0

    def header(self, data: bytes | memoryview) -> None:
        """The next bytes, which are no member's, so that one that was under way is over.

        Raises DiskFullError and its kin.
        """
        self._end_member()
        self._sha256.update(data)
        self.size += len(data)
        self._gather(data)

    def data(self, data: bytes, *, final: bool = False) -> None:
        """The next bytes of a member; *final* if they are known to be its last.

        Raises DiskFullError and its kin.
        """
        self._sha256.update(data)
        self.size += len(data)
        if self._compressible is None:
            if len(self._left) + len(data) <= recipe.LITERAL_MAX:
                self._left += data
                if final:
                    self._end_member()
                return
            head = self._left[:64] + data[: max(0, 64 - len(self._left))]
            self._compressible = not codec.looks_compressed(head)
        self._cut(data, self._compressible, final)

    def border(self) -> None:
        """No part is to reach from what came in to what comes next."""
        self._end_member()
        self._border = True

    def reserve(self) -> int:
        """A place in the order, behind all that came in, for parts that are known later.

        Until it is filled nothing behind it can be taken: when that is too much, what comes in
        raises LeftError.
        """
        self._end_member()
        place = self._slot()
        self._open.append(place)
        return place

    def fill(self, place: int, parts: list[Part]) -> None:
        """The parts that belong in a reserved place, which are not of bytes that came in.

        What came in behind it lies further behind by so much, and so does what made parts there
        are made of.
        """
        self._open.remove(place)
        length = recipe.total_length(parts)
        self.size += length
        # From the end on: what is in front of the place may be long.
        behind = self._taken + len(self._slots) - 1 - place
        for slot in islice(reversed(self._slots), behind):
            if slot and slot[0].kind == recipe.MADE:
                slot[:] = [_moved(part, length) for part in slot]
        self._fill(place, parts)

    def _end_member(self) -> None:
        if self._compressible is not None:
            self._cut(b"", self._compressible, final=True)
        elif self._left:
            left, self._left = self._left, b""
            self._gather(left)

    def _cut(self, data: bytes, compressible: bool, final: bool) -> None:
        pieces = self._ingest.split(Slice(data, final, compressible, self._left))
        behind = pieces.length - len(self._left)
        self._left = data[behind:] if behind >= 0 else self._left[pieces.length :] + data
        if final:
            self._compressible = None
        if pieces.pieces:
            self._batch.append((self._slot(), pieces))
            self._batch_bytes += pieces.length
            if self._batch_bytes >= BATCH:
                self._store_batch()

    def finish(self) -> bytes:
        """There is no more: the SHA-256 of all.  Raises DiskFullError and its kin."""
        self._end_member()
        self._store_batch()
        self._store_gathered()
        return self._sha256.digest()

    def take(self, count: int, *, final: bool = False) -> list[Part]:
        """The next *count* parts if so many are stored, else none; if *final* the last ones, too.

        Their pins are the caller's from now on.
        """
        # Not all of them at once: behind a place that was open for long may be very many.
        while self._slots and self._slots[0] and len(self._ready) < count:
            self._ready += self._slots.popleft()
            self._taken += 1
        if len(self._ready) < count and not final:
            return []
        taken, self._ready = self._ready[:count], self._ready[count:]
        return taken

    def take_all(self) -> list[Part]:
        """As take(), all that is stored."""
        return self.take(sys.maxsize, final=True)

    def abandon(self) -> None:
        """Let go of all that was not taken."""
        parts = [*self._ready, *(part for slot in self._slots for part in slot)]
        self._ready = []
        self._slots.clear()
        self._ingest.chunks.unpin(recipe.chunk_refs(parts))

    def _slot(self) -> int:
        if self._open and self._taken + len(self._slots) - self._open[0] > WAITING_MAX:
            raise LeftError("too many files in a member")
        self._slots.append([])
        return self._taken + len(self._slots) - 1

    def _fill(self, slot: int, parts: list[Part]) -> None:
        self._slots[slot - self._taken] = parts

    def _gather(self, data: bytes | memoryview) -> None:
        while data:
            room = self._gathered_max - len(self._gathered)
            piece = data[:room]
            last = self._spots[-1] if self._spots else None
            newest = self._taken + len(self._slots) - 1
            if last is not None and last.slot == newest and not self._border:
                last.length += len(piece)
            else:
                self._spots.append(_Spot(self._slot(), len(self._gathered), len(piece)))
                self._border = False
            self._gathered += piece
            data = data[room:]
            if len(self._gathered) == self._gathered_max:
                self._store_gathered()

    def _store_gathered(self) -> None:
        if not self._gathered:
            return
        whole = bytes(self._gathered)
        (cut,) = self._ingest.store([Pieces([memoryview(whole)], len(whole), True)])
        (stored,) = cut.parts
        spots, self._spots = self._spots, []
        self._gathered.clear()
        if stored.kind != recipe.CHUNK:
            for spot in spots:
                bytes_of = whole[spot.offset : spot.offset + spot.length]
                self._fill(spot.slot, [recipe.literal(bytes_of)])
            return
        number = ChunkNo(stored.ref)
        self._ingest.chunks.pin_again([number] * (len(spots) - 1))
        for spot in spots:
            part = stored
            if spot.length != stored.length:
                part = recipe.slice_of(number, spot.offset, spot.length)
            self._fill(spot.slot, [part])

    def _store_batch(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if batch:
            cuts = self._ingest.store([pieces for _, pieces in batch])
            for (slot, _), cut in zip(batch, cuts, strict=True):
                self._fill(slot, cut.parts)


def _moved(part: Part, by: int) -> Part:
    """A made part of what lies *by* bytes further behind."""
    how = recipe.made(part)
    return recipe.made_part(part.length, how._replace(start=how.start + by))
