"""A scrub: reading every chunk back against its checksums.

Pack by pack, in the order in which the chunks lie, so that a disk reads straight on.  Each
chunk's stored bytes must have its XXH3, and what they decode to its SHA-256.  Where the scrub
is lies in ``STORE/scrub.toml``, so that it goes on after an interruption; what was found
damaged is kept there, too.  Invariant: all that lies before the place in the file was read.

Works beside a daemon: what a pack lost meanwhile has no record any more, nor has one that went.
A view that is hours old may not know that, so what seems damaged is looked at once more, in a
new one.  Only one scrub at a time.
"""

from __future__ import annotations

import fcntl
import os
import tomllib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from cafs.blobs import recipe
from cafs.clock import Clock, SystemClock
from cafs.durable import Disk
from cafs.errors import CafsError, DamagedError, StoreBusyError, from_os_error
from cafs.index import layout
from cafs.index.layout import ChunkRecord
from cafs.operate.condemn import problem_of
from cafs.operate.readable import Unreadable, rows
from cafs.types import BlobNo, ChunkNo, PackNo
from cafs.view import View

STATE: Final = "scrub.toml"
SAVE_EVERY_S: Final = 10.0
AGE_MAX_S: Final = 30 * 86400.0
"""What was read before that says little of today's content."""
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
    sound: Sequence[int] = ()
    """Numbers of the chunks that were marked as damaged, and were found sound."""


def load_state(store: Path) -> State | None:
    """Where the last scrub stopped; None when it came to its end, or there was none."""
    try:
        raw = tomllib.loads((store / STATE).read_text())
        # Once only whole packs were noted, and not what was sound again.
        return State(
            _whole(raw["started_ns"]),
            _whole(raw["pack"]),
            _whole(raw["read_bytes"]),
            [_whole(number) for number in raw["damaged"]],
            _whole(raw.get("offset", 0)),
            tuple(_whole(number) for number in raw.get("sound", ())),
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Nothing depends on it: without it the scrub begins anew.
        return None


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value


def is_recent(state: State, now_ns: int) -> bool:
    """Whether it makes sense to go on there."""
    return 0 <= now_ns - state.started_ns <= AGE_MAX_S * 1e9


def anew(now_ns: int, before: State | None) -> State:
    """The beginning.  What a scrub before found, and perhaps did not mark, is not forgotten."""
    if before is None:
        return State(now_ns, 0, 0, [])
    return State(now_ns, 0, 0, before.damaged, 0, before.sound)


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
    fields = state._replace(damaged=list(state.damaged), sound=list(state.sound))._asdict()
    lines = [f"{name} = {value}" for name, value in fields.items()]
    text = "# Where `cafs scrub` goes on; it is removed when that has come to its end.\n"
    Disk().write_file(store / STATE, (text + "\n".join(lines) + "\n").encode())


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """No other scrub of *store* within the block.  Raises StoreBusyError if there is one.

    By a lock on the directory of the packs, which is there on a full or read-only disk, too.
    """
    try:
        fd = os.open(store / "packs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        # All packs are lost: that is what the scrub will say.
        yield
        return
    except OSError as error:
        raise from_os_error(error, f"open {store / 'packs'}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreBusyError(
                f"{store}: another scrub of it runs",
                advice="wait for its end, or interrupt it: the next one goes on where it stopped",
            ) from None
        yield
    finally:
        os.close(fd)


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
        self.total_bytes = sum(record.live_bytes for _, record in view.pack_table.items())
        self.read_bytes = 0
        self.read_chunks = 0
        self.sound_again: list[int] = []
        """Chunks that were marked as damaged, and are what was written after all."""
        self.unreadable: Unreadable = {}
        self.reached: State | None = None
        """Where another scrub would go on; None before the first chunk was read."""

    def _places(self) -> dict[PackNo, array[int]]:
        """Chunk numbers of each pack: 8 bytes a chunk, sorted pack by pack when it is read."""
        places: dict[PackNo, array[int]] = {}
        for key, value in rows(self._view, layout.CHUNKS, self.unreadable):
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
        self.sound_again = [] if state is None else list(state.sound)
        self.read_bytes = 0 if state is None else state.read_bytes
        began, read_before = self._clock.monotonic(), self.read_bytes
        saved = began
        places = self._places()
        for pack in sorted(places):
            if pack < first:
                continue
            for offset, number, record in self._in_order(places[pack]):
                if pack == first and offset < within:
                    continue
                damage = self._chunk(number, record)
                self.read_bytes += record.extent.stored_length
                self.read_chunks += 1
                if damage is not None:
                    damaged.append(number)
                behind = offset + record.extent.stored_length
                self.reached = State(
                    began_ns, pack, self.read_bytes, damaged, behind, self.sound_again
                )
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

    def _in_order(self, numbers: Iterable[int]) -> list[tuple[int, ChunkNo, ChunkRecord]]:
        """The chunks of a pack, each behind its offset."""
        chunks = []
        for number in numbers:
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
        key = layout.u48(number)
        try:
            value = self._view.overlay.get(layout.CHUNKS, key)
            return None if value is None else layout.unpack_chunk(value)
        except DamagedError as error:
            self.unreadable[layout.CHUNKS, key] = str(error)
            return None

    def _chunk(self, number: ChunkNo, record: ChunkRecord) -> Damage | None:
        extent = record.extent
        why = problem_of(self._view.packs, number, record)
        if not why and extent.damaged:
            self.sound_again.append(number)
        if not why or self._moved(number, record):
            return None
        return Damage(number, record.sha256, extent.pack, extent.offset, extent.stored_length, why)

    def _moved(self, number: ChunkNo, record: ChunkRecord) -> bool:
        """Whether compaction or a sweep took the chunk away since the snapshot."""
        environment = self._view.environment
        try:
            with environment.begin() as txn:
                value = environment.get(txn, layout.CHUNKS, layout.u48(number))
        except DamagedError:
            return False
        return value is None or layout.unpack_chunk(value).extent != record.extent


def look_again(path: Path, state: State) -> tuple[list[Damage], set[int]]:
    """What of all that a scrub has found so is still damaged, and still marked though sound.

    The newest commit counts: much may have moved or gone while the scrub was reading.
    """
    numbers = {*state.damaged, *state.sound}
    if not numbers:
        return [], set()
    with View(path) as view:
        work = Scrub(view, None, lambda _s: None)
        found = [damage for number in sorted(numbers) if (damage := work.look(number)) is not None]
        return found, set(work.sound_again)


def blobs_with(view: View, chunks: Iterable[int], unreadable: Unreadable) -> dict[BlobNo, set[int]]:
    """Blobs whose bytes lie in one of *chunks*, each with those that it needs: one pass.

    For an inner blob it is the outer one, which is what files have.
    """
    wanted = set(chunks)
    found: dict[BlobNo, set[int]] = {}
    if not wanted:
        return found
    for database in (layout.BLOBS, layout.RECIPES):
        for key, value in rows(view, database, unreadable):
            try:
                row = _row(database, value)
                hit = wanted.intersection(recipe.chunk_refs(recipe.decode(row))) if row else None
                outer = view.outer(BlobNo(layout.from_u48(key))) if hit else None
            except CafsError as error:
                unreadable[database, key] = str(error)
                continue
            if hit and outer is not None:
                found.setdefault(outer, set()).update(hit)
    return found


def _row(database: int, value: bytes) -> bytes | None:
    """The piece of a recipe in a record; None if there is none, or nobody has the blob."""
    if database == layout.RECIPES:
        return value
    record = layout.unpack_blob(value)
    return record.parts if record.refs and not record.flags & layout.BLOB_ROWS else None
