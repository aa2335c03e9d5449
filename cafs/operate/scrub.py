"""A scrub: reading every chunk back against its checksums.

Pack by pack, in the order in which the chunks lie, so that a disk reads straight on.  Each
chunk's stored bytes must have its XXH3, and what they decode to its SHA-256.  Where the scrub
is lies in ``STORE/scrub.toml``, so that it goes on after an interruption; what was found
damaged is kept there, too.  Invariant: all that lies before the place in the file was read.

Works beside a daemon: what a pack lost meanwhile has no record any more, nor has one that went.
"""

from __future__ import annotations

import hashlib
import tomllib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cafs.blobs import recipe
from cafs.blobs.reader import verified
from cafs.clock import Clock, SystemClock
from cafs.durable import Disk
from cafs.errors import CafsError, from_os_error
from cafs.index import layout
from cafs.index.layout import ChunkRecord
from cafs.types import BlobNo, ChunkNo, PackNo
from cafs.view import View

STATE: Final = "scrub.toml"
SAVE_EVERY_S: Final = 10.0
_SLEEP_MIN_S: Final = 0.01


class Damage(NamedTuple):
    """A chunk that is not what was written."""

    chunk: ChunkNo
    sha256: bytes
    pack: PackNo
    offset: int
    stored_length: int
    why: str


class State(NamedTuple):
    """How far a scrub is."""

    started_ns: int
    pack: int
    """All packs below this one are done."""
    read_bytes: int
    damaged: list[int]
    """Numbers of the chunks that were found damaged."""
    offset: int = 0
    """What begins before it in that pack is done, too."""


def load_state(store: Path) -> State | None:
    """Where the last scrub stopped; None when it came to its end, or there was none."""
    try:
        raw = tomllib.loads((store / STATE).read_text())
        # Once only whole packs were noted.
        offset = raw.get("offset", 0)
        return State(
            raw["started_ns"], raw["pack"], raw["read_bytes"], list(raw["damaged"]), offset
        )
    except (OSError, ValueError, KeyError):
        # Nothing depends on it: without it the scrub begins anew.
        return None


def save_state(store: Path, state: State | None) -> None:
    """Note it durably; None: the scrub is over.  Raises DiskFullError and its kin."""
    if state is None:
        try:
            # A read-only disk refuses the removal of what is not there, too.
            if (store / STATE).exists():
                (store / STATE).unlink()
        except OSError as error:
            raise from_os_error(error, f"remove {store / STATE}") from error
        return
    lines = [f"{name} = {value}" for name, value in state._asdict().items()]
    text = "# Where `cafs scrub` goes on; it is removed when that has come to its end.\n"
    Disk().write_file(store / STATE, (text + "\n".join(lines) + "\n").encode())


class Scrub:
    """One scrub of the packs of a view."""

    def __init__(
        self,
        view: View,
        rate: float | None,
        sleep: Callable[[float], None],
        clock: Clock | None = None,
    ) -> None:
        """*rate* bounds the bytes that are read per second; *sleep* waits for so many seconds."""
        self._view = view
        self._rate = rate
        self._sleep = sleep
        self._clock = clock or SystemClock()
        self._chunks = self._places()
        self.total_bytes = sum(record.live_bytes for _, record in view.pack_table.items())
        self.read_bytes = 0
        self.read_chunks = 0
        self.sound_again: set[int] = set()
        """Chunks that were marked as damaged, and are what was written after all."""
        self.reached: State | None = None
        """Where another scrub would go on; None before the first chunk was read."""

    def _places(self) -> dict[PackNo, array[int]]:
        """Chunk numbers of each pack: 8 bytes a chunk, sorted pack by pack when it is read."""
        places: dict[PackNo, array[int]] = {}
        for key, value in self._view.overlay.scan(layout.CHUNKS, b"", b""):
            pack = layout.unpack_chunk(value).extent.pack
            places.setdefault(pack, array("Q")).append(layout.from_u48(key))
        return places

    def run(
        self,
        state: State | None,
        on_progress: Callable[[int], None],
        save: Callable[[State], None],
    ) -> Iterator[Damage]:
        """Read everything, from *state* on; what is damaged, as it is found."""
        began_ns = self._clock.now_ns() if state is None else state.started_ns
        first, within = (0, 0) if state is None else (state.pack, state.offset)
        damaged = [] if state is None else list(state.damaged)
        self.read_bytes = 0 if state is None else state.read_bytes
        began, read_before = self._clock.monotonic(), self.read_bytes
        saved = began
        for pack in sorted(self._chunks):
            if pack < first:
                continue
            for offset, number, record in self._in_order(pack):
                if pack == first and offset < within:
                    continue
                damage = self._chunk(number, record)
                self.read_bytes += record.extent.stored_length
                self.read_chunks += 1
                if damage is not None:
                    damaged.append(number)
                behind = offset + record.extent.stored_length
                self.reached = State(began_ns, pack, self.read_bytes, damaged, behind)
                if damage is not None:
                    yield damage
                on_progress(self.read_bytes)
                if self._clock.monotonic() - saved > SAVE_EVERY_S:
                    saved = self._clock.monotonic()
                    save(self.reached)
                if self._rate:
                    due = (self.read_bytes - read_before) / self._rate
                    wait = due - (self._clock.monotonic() - began)
                    if wait > _SLEEP_MIN_S:
                        self._sleep(wait)

    def _in_order(self, pack: PackNo) -> list[tuple[int, ChunkNo, ChunkRecord]]:
        """The chunks of a pack, each behind its offset."""
        chunks = []
        for number in self._chunks[pack]:
            record = self._record(ChunkNo(number))
            if record is not None:
                chunks.append((record.extent.offset, ChunkNo(number), record))
        chunks.sort()
        return chunks

    def look(self, number: int) -> Damage | None:
        """Read one chunk; what is wrong with it, if anything is."""
        record = self._record(ChunkNo(number))
        return None if record is None else self._chunk(ChunkNo(number), record)

    def _record(self, number: ChunkNo) -> ChunkRecord | None:
        value = self._view.overlay.get(layout.CHUNKS, layout.u48(number))
        return None if value is None else layout.unpack_chunk(value)

    def _chunk(self, number: ChunkNo, record: ChunkRecord) -> Damage | None:
        extent = record.extent
        why = ""
        try:
            stored = self._view.packs.read_stored(extent.pack, extent.offset, extent.stored_length)
            raw = verified(number, extent, stored)
            if hashlib.sha256(raw).digest() != record.sha256:
                why = f"chunk {number} does not have its SHA-256"
        except CafsError as error:
            why = str(error)
        if not why and extent.damaged:
            self.sound_again.add(number)
        if not why or self._moved(number, record):
            return None
        return Damage(number, record.sha256, extent.pack, extent.offset, extent.stored_length, why)

    def _moved(self, number: ChunkNo, record: ChunkRecord) -> bool:
        """Whether compaction or a sweep took the chunk away since the snapshot."""
        environment = self._view.environment
        with environment.begin() as txn:
            value = environment.get(txn, layout.CHUNKS, layout.u48(number))
        return value is None or layout.unpack_chunk(value).extent != record.extent


def blobs_with(view: View, chunks: Iterable[int]) -> dict[BlobNo, set[int]]:
    """Blobs whose bytes lie in one of *chunks*, each with those that it needs: one pass.

    For an inner blob it is the outer one, which is what files have.
    """
    wanted = set(chunks)
    found: dict[BlobNo, set[int]] = {}
    if not wanted:
        return found

    def look(number: int, encoded: bytes) -> None:
        hit = wanted.intersection(recipe.chunk_refs(recipe.decode(encoded)))
        outer = view.outer(BlobNo(number)) if hit else None
        if outer is not None:
            found.setdefault(outer, set()).update(hit)

    for key, value in view.overlay.scan(layout.BLOBS, b"", b""):
        record = layout.unpack_blob(value)
        if record.refs and not record.flags & layout.BLOB_ROWS:
            look(layout.from_u48(key), record.parts)
    for key, value in view.overlay.scan(layout.RECIPES, b"", b""):
        look(layout.from_u48(key), value)
    return found
