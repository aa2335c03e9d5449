"""Finding chunks or storing them: the one place where deduplication is decided.

Two threads meet in the table of chunks.  Workers find or store chunks and hold a *pin* on each
until the event loop has counted it into a recipe; the event loop counts references and sweeps.
Under the one lock a chunk is therefore never swept between being found and being counted.  The
lock is held for moments, never over I/O: a worker *reserves* what it is about to append, and
others who want the same wait for it.  Invariant: no bytes are appended that have a sound chunk.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from cafs.blobs.pack import PackStore, StoredChunk
from cafs.index import layout
from cafs.index.counters import Counters
from cafs.index.overlay import Overlay
from cafs.index.recent import Recent
from cafs.types import ChunkNo, Extent, PackNo

_Place = tuple[frozenset[PackNo], int]
"""Packs that chunks may be appended to: some, and all from a number on."""


class _Found:
    """What of the chunks that intern() is asked for is there."""

    __slots__ = ("damaged", "numbers", "pinned")

    def __init__(self) -> None:
        self.numbers: dict[bytes, ChunkNo] = {}
        self.damaged: dict[bytes, ChunkNo] = {}
        """Chunks with a record, whose bytes must be stored anew."""
        self.pinned: list[ChunkNo] = []
        """One pin each, also on what turned out to be something else."""


class Interning:
    """What workers do with the table of chunks.  Any thread, but for what says otherwise."""

    def __init__(self, overlay: Overlay, counters: Counters, packs: PackStore) -> None:
        self._overlay = overlay
        self._counters = counters
        self._packs = packs
        self._lock = threading.Lock()
        self._stored = threading.Condition(self._lock)
        # What workers are appending now.
        self._storing: set[bytes] = set()
        self._appending: list[_Place] = []
        self._pins: Counter[ChunkNo] = Counter()
        # Stored by a worker, not yet in the overlay.
        self._landing: dict[bytes, ChunkNo] = {}
        self._landing_extents: dict[ChunkNo, tuple[bytes, Extent]] = {}
        self.recent: Recent[ChunkNo] = Recent()
        # Damaged chunks whose bytes were stored anew by a worker.
        self._healing: dict[ChunkNo, Extent] = {}

    def intern(
        self,
        digests: Sequence[bytes],
        encode: Callable[[list[int]], Sequence[StoredChunk]],
    ) -> list[ChunkNo]:
        """Find the chunks with these SHA-256 digests, store the others; all come back pinned.

        Any thread.  *encode* is given the positions of those that must be stored and returns
        what to store for them.  Raises DiskFullError and its kin; then nothing is pinned.
        """
        found = _Found()
        try:
            self._intern(digests, encode, found)
        except BaseException:
            self.unpin(found.pinned)
            raise
        result = [found.numbers[digest] for digest in digests]
        with self._lock:
            # One pin for each position, in the place of those that were taken on the way.
            self._pin(result)
            for number in found.pinned:
                self._unpin(number)
        return result

    def _intern(
        self,
        digests: Sequence[bytes],
        encode: Callable[[list[int]], Sequence[StoredChunk]],
        found: _Found,
    ) -> None:
        generation = self._look(digests, found)
        missing = {
            digest: position
            for position, digest in enumerate(digests)
            if digest not in found.numbers
        }
        if missing:
            self._store(encode(list(missing.values())), found, generation)
            # Not with the lock: a disk that is busy makes this wait.
            self._packs.begin_writing()

    def _look(self, digests: Iterable[bytes], found: _Found) -> int:
        """Take what is stored; the overlay's generation before that."""
        generation = self._overlay.generation
        # In this order: what is committed in between is met by one or the other.
        with self._lock:
            self._take_known(digests, found)
        missing = [digest for digest in digests if digest not in found.numbers]
        if missing:
            self._take_committed(missing, found)
        return generation

    def _take_known(self, digests: Iterable[bytes], found: _Found) -> None:
        """Take what was stored since the last commit.  With the lock."""
        taken = []
        for digest in digests:
            if digest not in found.numbers:
                known = self._known(digest)
                if known:
                    found.numbers[digest] = known
                    taken.append(known)
                elif found.damaged.get(digest) in self._healing:
                    # Pinned already: somebody else has stored it anew.
                    found.numbers[digest] = found.damaged[digest]
        self._pin(taken)
        found.pinned += taken

    def _take_committed(self, digests: Iterable[bytes], found: _Found) -> None:
        """Take what the newest commit knows; what is damaged is only noted, and pinned, too."""
        pairs = self._candidates(digests)
        if not pairs:
            return
        numbers = [number for _, number in pairs]
        # Before the look: then it finds nothing that the sweep still takes.
        with self._lock:
            self._pin(numbers)
        found.pinned += numbers
        keys = [layout.u48(number) for number in numbers]
        values = self._overlay.get_anywhere(layout.CHUNKS, keys)
        for (digest, number), value in zip(pairs, values, strict=True):
            # With one that cannot be read nothing is shared: the same bytes get a sound one.
            if value is not None and value.startswith(digest):
                damaged = layout.unpack_chunk(value).extent.damaged
                (found.damaged if damaged else found.numbers)[digest] = number

    def _store(self, chunks: Sequence[StoredChunk], found: _Found, generation: int) -> None:
        """Append those that nobody else has stored since a look before which *generation* was."""
        left = list(chunks)
        while left:
            if self._overlay.generation != generation:
                # What was stored meanwhile may be committed, and only be known by that.
                generation = self._look([chunk.sha256 for chunk in left], found)
            with self._stored:
                self._take_known([chunk.sha256 for chunk in left], found)
                left = [chunk for chunk in left if chunk.sha256 not in found.numbers]
                if self._overlay.generation != generation:
                    # Asked behind what is known: that may have gone to a commit just before.
                    continue
                mine = [chunk for chunk in left if chunk.sha256 not in self._storing]
                if not mine:
                    if left:
                        # Nothing is reserved by who waits, so two never wait for each other.
                        self._stored.wait()
                    continue
                where = self._reserve(mine)
            self._append(mine, found, where)
            left = [chunk for chunk in left if chunk.sha256 not in found.numbers]

    def _reserve(self, chunks: Sequence[StoredChunk]) -> _Place:
        """Say that these are being appended, before _append().  With the lock."""
        # A pack that is just being made has the last number, and may not be open yet.
        where = self._packs.open_packs, self._packs.next_pack_no - 1
        self._storing.update(chunk.sha256 for chunk in chunks)
        self._appending.append(where)
        return where

    def _append(self, chunks: Sequence[StoredChunk], found: _Found, where: _Place) -> None:
        extents: Sequence[Extent] = ()
        try:
            extents = self._packs.append(chunks)
        finally:
            # If it has failed there are none, and whoever waits for these tries it himself.
            with self._stored:
                for chunk, extent in zip(chunks, extents, strict=False):
                    found.numbers[chunk.sha256] = self._arrived(chunk.sha256, extent, found)
                self._storing.difference_update(chunk.sha256 for chunk in chunks)
                self._appending.remove(where)
                self._stored.notify_all()

    def _arrived(self, sha256: bytes, extent: Extent, found: _Found) -> ChunkNo:
        """The number of a chunk that was appended.  With the lock."""
        number = found.damaged.get(sha256)
        if number is not None:
            self._healing[number] = extent
            return number
        number = ChunkNo(self._counters.next_chunk)
        self._counters.next_chunk += 1
        self._landing[sha256] = number
        self._landing_extents[number] = (sha256, extent)
        self._pin([number])
        found.pinned.append(number)
        return number

    def _known(self, digest: bytes) -> ChunkNo | None:
        return self._landing.get(digest) or self.recent.get(digest)

    def _candidates(self, digests: Iterable[bytes]) -> list[tuple[bytes, ChunkNo]]:
        """The digests with each chunk of the newest commit that may have them."""
        digests = list(digests)
        found = self._overlay.committed_numbers(layout.CHUNK_SHA256, digests)
        return [
            (digest, ChunkNo(number))
            for digest, numbers in zip(digests, found, strict=True)
            for number in numbers
        ]

    def _pin(self, numbers: Iterable[ChunkNo]) -> None:
        self._pins.update(numbers)

    def _unpin(self, number: ChunkNo) -> None:
        left = self._pins[number] - 1
        if left > 0:
            self._pins[number] = left
            return
        del self._pins[number]
        landed = self._landing_extents.pop(number, None)
        if landed is not None:
            # Stored and never counted: its bytes in the pack are dead from the start.
            self._landing.pop(landed[0], None)

    def pin_again(self, numbers: Sequence[ChunkNo]) -> None:
        """Pin each number once more; all are pinned already.  Any thread."""
        with self._lock:
            self._pin(numbers)

    def unpin(self, numbers: Sequence[ChunkNo]) -> None:
        """Let go of chunks that came from intern() and will not be counted.  Any thread."""
        with self._lock:
            for number in numbers:
                self._unpin(number)
