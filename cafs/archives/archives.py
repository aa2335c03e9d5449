"""Archives of one store: taken apart, read, proven, thawed; and all that takes.

The door to this layer.  Owns its threads and the order in which its parts come and go.
Belongs to the event loop.  Invariant: no engine is looked for, and no program run, before
something needs one: a store without archives pays nothing for them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio

from cafs.archive_options import ArchiveOptions
from cafs.archives.cache import Cache
from cafs.archives.engine import Engine
from cafs.archives.engine_record import records_in
from cafs.archives.engines import Engines
from cafs.archives.proof import Proof
from cafs.archives.rebuilds import LOOK_S, Rebuilds
from cafs.archives.segments import Bounds
from cafs.archives.take_apart import Outcome, Surroundings, TakeApart
from cafs.archives.thaw import Thaw
from cafs.archives.uses import Uses
from cafs.blobs.blobs import Blobs
from cafs.blobs.ingest import Ingest
from cafs.blobs.reader import Reader
from cafs.clock import Clock
from cafs.durable import Disk
from cafs.errors import CafsError
from cafs.index import layout
from cafs.types import BlobNo
from cafs.workers import Workers

log = logging.getLogger(__name__)

REBUILDS_AT_ONCE: Final = 2
ZSTD_LEVEL: Final = 6
"""For what is inside archives: 10 % smaller than level 1, and still four times as fast as the
engine that proves it (docs/decisions/0013-archives.md)."""
FIRST_RATE: Final = 15e6
"""Bytes of content a second that GNU gzip -6 takes on a busy core: the estimate to begin with."""
MEASURABLE_S: Final = 0.1


class StoreSide(NamedTuple):
    """What archives need of their store."""

    path: Path
    store_id: bytes
    disk: Disk
    clock: Clock
    blobs: Blobs
    reader: Reader
    ingest: Ingest
    workers: Workers
    """For foreground ingest."""
    busy: Callable[[BlobNo], bool]
    """Whether somebody is writing on top of a blob."""
    open: Callable[[BlobNo], bool]
    """Whether somebody has a file open that has this blob."""
    upgrade: Callable[[], None]
    """Makes the store's version one that may hold aged blobs, durably.  Blocks."""
    admit: Callable[[], Awaitable[None]]
    """Waits for room in the overlay.  Raises DiskFullError and its kin on an ill disk."""


class Archives:
    """See above."""

    def __init__(self, side: StoreSide, options: ArchiveOptions) -> None:
        self._side = side
        self.options = options
        self._foreground = Workers(REBUILDS_AT_ONCE, "rebuild")
        self._readers = Workers(1, "rebuilt")
        self._background = Workers(1, "ageing", niceness=19)
        self._opened = False
        self._closing = False
        self._opening = trio.Lock()
        self._upgraded = False
        self.raw_rate = FIRST_RATE
        """Bytes of content a second that rebuilding was measured to take."""
        self.cache = Cache(side.disk, side.path, side.store_id, options.cache_size)
        self.engines = Engines(side.path, self._record_engine, side.disk)
        self.uses = Uses(side.clock, options.thaw_after)
        self.rebuilds = Rebuilds(
            side.disk,
            self.cache,
            side.blobs,
            side.reader,
            self.ready,
            self.engines,
            self._foreground,
            self._readers,
            side.clock,
            self.uses,
        )
        self._apart = TakeApart(
            Surroundings(
                side.blobs,
                side.reader,
                Ingest(side.ingest.chunks, side.ingest.params, ZSTD_LEVEL),
                self.engines,
                self._background,
                side.clock,
                Bounds(options.max_inflated, options.max_ratio),
                side.busy,
                side.open,
                self._prepare,
                side.admit,
            )
        )
        self._thaw = Thaw(side.blobs, side.ingest, self.rebuilds, side.workers, side.admit)
        side.reader.aged = self.rebuilds.read
        self.cache.open()

    def _record_engine(self, number: int, value: bytes) -> None:
        self._side.blobs.overlay.put(layout.META, layout.engine_key(number), value)

    async def ready(self) -> None:
        """Look for the engines, if that was not done yet.  Raises IndexDamagedError."""
        if self._opened:
            return
        async with self._opening:
            if not self._opened:
                records = records_in(self._side.blobs.overlay)
                await self._foreground.run(partial(self.engines.open, records))
                await self._foreground.run(self.engines.restore)
                self._opened = True

    @property
    def problem(self) -> CafsError | None:
        """What an operator has to see to, the worst of it."""
        return self.engines.problem() if self._opened else None

    @property
    def opened(self) -> bool:
        """Whether the engines have been looked for."""
        return self._opened

    async def _prepare(self) -> None:
        await self.ready()
        if not self._upgraded:
            await self._background.run(self._side.upgrade)
            self._upgraded = True

    # -- what is done with archives ------------------------------------------------------------

    @property
    def pace(self) -> Callable[[], Awaitable[None]] | None:
        """Awaited between the steps of taking apart and proving: how they yield to others."""
        return self._apart.pace

    @pace.setter
    def pace(self, pace: Callable[[], Awaitable[None]] | None) -> None:
        self._apart.pace = pace

    async def take_apart(self, blob: BlobNo) -> Outcome:
        """Take an archive apart; see TakeApart.  One at a time.

        Raises DiskFullError and its kin, ChunkDamagedError; then everything is as it was.
        """
        outcome = await self._apart.take_apart(blob)
        if outcome.done:
            self._measured(outcome.inner_size, self._apart.proof_s)
        return outcome

    async def prove(self, blob: BlobNo, engine: Engine | None = None) -> Proof:
        """Rebuild an aged blob and compare; with *engine* in the place of its own, if given.

        Raises RebuildError, EngineError, ChunkDamagedError.
        """
        await self.ready()
        proof = await self._apart.prove(blob, engine)
        inner = self._side.blobs.get(self._side.blobs.get(blob).mate)
        self._measured(inner.size, proof.busy_s)
        return proof

    def _measured(self, raw_bytes: int, seconds: float) -> None:
        # What is over at once says more of starting a program than of its speed.
        if seconds > MEASURABLE_S:
            self.raw_rate += (raw_bytes / seconds - self.raw_rate) / 4

    async def thaw(self, blob: BlobNo) -> bool:
        """Give an aged blob its plain recipe back; False if it had it.

        Raises RebuildError, DiskFullError and its kin.
        """
        self.uses.forget(blob)
        return await self._thaw.thaw(blob)

    @property
    def thawed(self) -> int:
        """Blobs that were thawed."""
        return self._thaw.done

    def give_way(self, needed: int | None = None) -> int:
        """The disk is full: the cache goes; how many bytes that gives back.  Any thread.

        *needed*: only so many bytes of it, and nothing if it has fewer.
        """
        if needed is not None and needed > self.cache.used:
            return 0
        return self.cache.make_room(needed)

    def parked(self) -> AbstractAsyncContextManager[None]:
        """None of its threads reads the index within the block; rebuilding never does."""
        return self._background.parked()

    # -- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """End what nobody reads any more, fill what is read slowly, thaw what often; for ever.

        Where archives were taken apart, what makes them again is looked for at once: that it is
        lost must not be found out by a reader.
        """
        if records_in(self._side.blobs.overlay):
            try:
                await self.ready()
            except CafsError as error:
                if not self._closing:
                    log.error("engines cannot be used: %s; what to do: %s", error, error.advice)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.rebuilds.fill)
            nursery.start_soon(self._look_after)
            nursery.start_soon(self._thaw_used)

    async def _look_after(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            await self.rebuilds.look_after()

    async def _thaw_used(self) -> None:
        """By itself: one of gigabytes takes minutes, and what is idle is to end meanwhile."""
        while True:
            await trio.sleep(LOOK_S)
            blob = self.uses.next_to_thaw()
            if blob is not None:
                try:
                    await self.thaw(blob)
                except CafsError as error:
                    log.info("blob %d, which is read often, stays taken apart: %s", blob, error)

    async def close(self) -> None:
        """End all rebuilds; what reads now hears that the store is being closed."""
        self._closing = True
        await self.rebuilds.close()

    def let_go(self) -> None:
        """End the threads."""
        self._foreground.close()
        self._readers.close()
        self._background.close()
