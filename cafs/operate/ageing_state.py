"""What ageing remembers over restarts: whether it is paused, and what it has done so far.

Owns ``STORE/ageing.toml``.  Invariant: nothing depends on it: without the file, or with one that
cannot be understood, ageing is not paused and counts from 0.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Final, Self

import trio

from cafs.archives.archives import FIRST_RATE
from cafs.archives.kind import GZIP, KINDS
from cafs.durable import Disk
from cafs.lock import StoreLock
from cafs.operate.candidates import GAIN_FIRST

FILE: Final = "ageing.toml"
PRIOR_BYTES: Final = 64 << 20
"""How much the first guess of a kind's gain counts, as so many bytes that were measured."""
_HEAD: Final = "# Kept by `cafs age`; it may be removed while the store is not mounted.\n"


@dataclass
class State:
    """See above.  Sums count from the store's beginning."""

    paused: bool = False
    taken_apart_count: int = 0
    taken_apart_bytes: int = 0
    """Sizes of the archives."""
    gained_bytes: int = 0
    """Stored bytes that this saved, without the share of archives that were made plain
    again or deleted."""
    aged_bytes: int = 0
    """Sizes of those archives that are still there and taken apart."""
    worked_s: float = 0.0
    engines_cpu_s: float = 0.0
    """Processor time of programs that were run."""
    gzip_bytes: int = 0
    """Sizes of the archives of a kind that were taken apart, and what that saved: the expected
    gain of the next."""
    gzip_gained_bytes: int = 0
    zip_bytes: int = 0
    zip_gained_bytes: int = 0
    rebuild_bytes_per_s: float = FIRST_RATE
    """Bytes of content that are made into an archive again in a second."""

    @classmethod
    def load(cls, store: Path) -> Self:
        """What is remembered of a store."""
        try:
            raw = tomllib.loads((store / FILE).read_text())
        except (OSError, ValueError):
            return cls()
        state = cls()
        for field in fields(cls):
            value = raw.get(field.name)
            before = getattr(state, field.name)
            # A TOML integer is fine where a number with a point is expected.
            if isinstance(value, bool) == isinstance(before, bool) and isinstance(
                value, int | float
            ):
                setattr(state, field.name, type(before)(value))
        if "aged_bytes" not in raw:
            # A file from before they were counted.
            state.aged_bytes = state.taken_apart_bytes
        if not state.rebuild_bytes_per_s > 0:
            state.rebuild_bytes_per_s = FIRST_RATE
        return state

    def gain(self, kind: str) -> float:
        """What an archive of a kind is expected to gain, as a share of its size."""
        size, gained = (
            (self.gzip_bytes, self.gzip_gained_bytes)
            if kind == GZIP
            else (self.zip_bytes, self.zip_gained_bytes)
        )
        return max(0.0, (GAIN_FIRST[kind] * PRIOR_BYTES + gained) / (PRIOR_BYTES + size))

    def gains(self) -> dict[str, float]:
        """gain() by kind."""
        return {kind: self.gain(kind) for kind in KINDS}

    def count(self, kind: str, size: int, gained: int) -> None:
        """One more archive was taken apart."""
        self.taken_apart_count += 1
        self.taken_apart_bytes += size
        self.aged_bytes += size
        self.gained_bytes += gained
        if kind == GZIP:
            self.gzip_bytes += size
            self.gzip_gained_bytes += gained
        else:
            self.zip_bytes += size
            self.zip_gained_bytes += gained

    def count_gone(self, size: int) -> None:
        """Archives of *size* bytes together were made plain again, or deleted.

        What each of them had saved is not known: what it shared with others has changed since.
        So it is their share of the whole, and when the last one goes nothing is left.
        """
        if size > 0:
            share = min(1.0, size / self.aged_bytes) if self.aged_bytes > 0 else 1.0
            self.gained_bytes -= round(self.gained_bytes * share)
            self.aged_bytes = max(0, self.aged_bytes - size)

    def write(self, store: Path) -> None:
        """Remember it durably.  Blocks.  Raises DiskFullError and its kin."""
        lines = [f"{name} = {_toml(value)}" for name, value in asdict(self).items()]
        Disk().write_file(store / FILE, (_HEAD + "\n".join(lines) + "\n").encode())


class Keeper:
    """Writes down what ageing remembers.  Belongs to the event loop."""

    def __init__(self, store: Path) -> None:
        self.state = State.load(store)
        self._store = store
        self._written = replace(self.state)
        self._writing = trio.Lock()

    async def write(self) -> None:
        """Remember the state as it is now, durably.  Raises DiskFullError and its kin."""
        # A pass that was stopped and who has stopped it come here at the same time.
        with trio.CancelScope(shield=True):
            async with self._writing:
                state = replace(self.state)
                if state != self._written:
                    await trio.to_thread.run_sync(partial(state.write, self._store))
                    self._written = state


def _toml(value: float) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def set_paused(store: Path, *, paused: bool) -> None:
    """Pause ageing, or let it go on, in a store that no daemon has.

    Raises StoreBusyError, DiskFullError and its kin.
    """
    lock = StoreLock(store)
    try:
        state = State.load(store)
        state.paused = paused
        state.write(store)
    finally:
        lock.release()
