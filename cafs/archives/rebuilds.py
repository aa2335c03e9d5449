"""Readers of aged blobs: each blob is rebuilt once for all who read it at the moment.

A rebuild is driven by its readers: whoever waits for bytes takes the next step, so where nobody
waits nothing runs, and a reader that goes away needs no telling.  Only what is read more slowly
than it is made goes on without its readers, into its file: they need no engine then, of which
there are few.  What was made stays in the cache if it was made to its end; else it goes, with the
engine, some time after the last reader.  Belongs to the event loop.  Invariant: bytes are given
out only when their checksum was right, and the last of a blob only when the SHA-256 of all of it
was.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from cafs.archives.cache import Cache
from cafs.archives.choice import Choice, Programs
from cafs.archives.engine_run import OtherBytesError
from cafs.archives.growing import BehindError, Growing, LostError
from cafs.archives.nested import source_of
from cafs.archives.rebuild import Rebuild, recipe_of
from cafs.archives.run import Run
from cafs.archives.uses import Uses
from cafs.blobs.blobs import Blobs
from cafs.blobs.reader import Reader
from cafs.clock import Clock
from cafs.durable import Disk
from cafs.errors import CafsError, EngineError, RebuildError
from cafs.index.layout import BLOB_AGED, BLOB_NESTED, BlobRecord
from cafs.types import BlobNo
from cafs.workers import Workers

log = logging.getLogger(__name__)

ENGINES_MAX: Final = 8
"""Rebuilds with an engine, which may be a process, or with memory, paused ones included."""
RUNS_MAX: Final = 32
"""Rebuilds in all that wait for their next reader: the others have a file and nothing else ..."""
KEPT_MIN: Final = 2 << 20
"""... with so many bytes: fewer are made anew in no time."""
IDLE_MAX_S: Final = 60.0
"""How long one waits for its next reader.  A slow client is one with long pauses."""
GIVES_WAY_S: Final = 0.25
"""For how long nobody must have needed an engine that is taken away for the sake of another."""
FILLED_S: Final = 10.0
"""How long after its last reader one is still made without them."""
LOOK_S: Final = 1.0
PIECE_MAX: Final = 4 << 20
"""Bytes that are waited for at once: less than what is kept in memory where there is no file."""
ATTEMPTS: Final = 8


class Rebuilds:
    """All rebuilds of a store."""

    def __init__(
        self,
        disk: Disk,
        cache: Cache,
        blobs: Blobs,
        reader: Reader,
        ready: Callable[[], Awaitable[None]],
        engines: Programs,
        workers: Workers,
        readers: Workers,
        clock: Clock,
        uses: Uses,
    ) -> None:
        """*ready* is awaited before *engines* are asked.

        *workers* run engines and write to the cache: as many rebuilds go on at once as it has
        threads, step by step in turn.  *readers* read what is there, and wait for no such step.
        """
        self._disk = disk
        self.cache = cache
        self._blobs = blobs
        self._reader = reader
        self._ready = ready
        self._engines = engines
        self._workers = workers
        self._readers = readers
        self._clock = clock
        self._uses = uses
        self._runs: list[Run] = []
        self._room = trio.lowlevel.ParkingLot()
        """Those who wait for an engine."""
        self._slow = trio.lowlevel.ParkingLot()
        """Where fill() waits for a slow reader."""
        self.idle_max_s = IDLE_MAX_S
        self.begun = 0
        """Rebuilds that were begun."""
        self.failed = 0
        """Rebuilds that ended with an error."""
        self.made_bytes = 0
        """Bytes of blobs that were made."""
        self.busy_s = 0.0
        """Time that steps took."""

    @property
    def under_way(self) -> int:
        """Rebuilds that are there now."""
        return len(self._runs)

    async def read(self, blob: BlobNo, start: int, end: int) -> bytes | memoryview:
        """Bytes [start, end) of an aged blob.  Raises RebuildError, ChunkDamagedError ..."""
        self._uses.read(blob, start)
        return await self.read_uncounted(blob, start, end)

    async def read_uncounted(self, blob: BlobNo, start: int, end: int) -> bytes | memoryview:
        """As read(), but it is no use of the blob."""
        pieces = []
        for low in range(start, end, PIECE_MAX):
            pieces.append(await self._read(blob, low, min(end, low + PIECE_MAX)))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _read(self, blob: BlobNo, start: int, end: int) -> bytes | memoryview:
        for _ in range(ATTEMPTS):
            record = self._blobs.get(blob)
            if not record.flags & BLOB_AGED:
                # It was thawed since the reader looked.
                return await self._reader.read(blob, start, end)
            end = min(end, record.size)
            if start >= end:
                return b""
            found = await self._from_cache(blob, record, start, end)
            if found is not None:
                return found
            run = await self._run_for(blob, start, end)
            try:
                with run.in_use():
                    return await self._from_run(run, start, end)
            except LostError:
                await self._lose(run)
            except BehindError:
                # What it had to keep is gone for this reader: it is made again.
                continue
            finally:
                self._room.unpark()
                if run.slow:
                    self._slow.unpark()
        raise RebuildError(f"blob {blob} cannot be kept long enough to be read")

    async def _from_cache(
        self, blob: BlobNo, record: BlobRecord, start: int, end: int
    ) -> memoryview | None:
        if not self.cache.has(blob):
            return None
        identity = self.cache.identity(record.sha256, record.size)
        return await self._readers.run(lambda: self.cache.read(blob, identity, start, end))

    # -- runs --------------------------------------------------------------------------------

    async def _run_for(self, blob: BlobNo, start: int, end: int) -> Run:
        """The run that has, or will have, bytes [start, end)."""
        for run in self._runs:
            if run.blob == blob and run.failed is None and run.growing.has(start, end):
                return run
        return await self._begin(blob)

    async def _engage(self, run: Run) -> None:
        """Wait until there may be an engine for a run, or take that which is least needed."""
        while not run.counts and sum(each.counts for each in self._runs) >= ENGINES_MAX:
            if run.failed is not None:
                raise run.failed
            # One that is locked takes a step.
            idle = [each for each in self._runs if each.counts and not each.lock.locked()]
            idlest = max(idle, key=Run.spare_s, default=None)
            left = GIVES_WAY_S - (0.0 if idlest is None else idlest.spare_s())
            if idlest is None or left > 0:
                with trio.move_on_after(left):
                    await self._room.park()
            elif idlest.growing.filed and idlest.growing.position >= KEPT_MIN:
                # Its readers still have what was made; who needs more begins it anew.
                await self._stop(idlest)
            else:
                await self._end(idlest)
        run.engaged = True

    async def _begin(self, blob: BlobNo) -> Run:
        # No checkpoint before the run is in the list: else two would be made for one blob.
        record = self._blobs.get(blob)
        identity = self.cache.identity(record.sha256, record.size)
        growing = Growing(self._disk, self.cache, blob, identity)
        choice = Choice(self._engines)
        run = Run(blob, record.mate, identity, growing, choice, self._clock)
        self._blobs.aged.hold(run.inner)
        self._runs.append(run)
        self.begun += 1
        if len(self._runs) > RUNS_MAX:
            others = [each for each in self._runs if each is not run and not each.lock.locked()]
            idlest = max(others, key=Run.idle_s, default=run)
            if idlest.idle_s() > 0 and idlest is not run:
                await self._end(idlest)
        await trio.lowlevel.checkpoint_if_cancelled()
        return run

    async def _from_run(self, run: Run, start: int, end: int) -> bytes:
        while run.growing.position < end:
            async with run.lock:
                if run.failed is not None:
                    raise run.failed
                if run not in self._runs:
                    raise BehindError
                if run.growing.position < end:
                    await self._step(run)
        if run.complete:
            await self._settle(run)
            if self.cache.has(run.blob):
                # Others, too, read from there from now on.
                record = self._blobs.get(run.blob)
                found = await self._from_cache(run.blob, record, start, end)
                if found is None:
                    raise BehindError
                return bytes(found)
        return await self._readers.run(lambda: run.growing.read(start, end))

    async def _settle(self, run: Run) -> None:
        """All is made: it needs no engine any more, and nothing at all if the cache has it."""
        async with run.lock:
            if run in self._runs and not run.whole:
                run.whole = True
                await self._stop(run)
                await self._workers.run(run.growing.finish)
            if self.cache.has(run.blob):
                await self._end(run)

    async def _step(self, run: Run) -> None:
        before, began = run.growing.position, self._clock.monotonic()
        try:
            if run.rebuild is None:
                await self._ready()
                await self._engage(run)
                run.begin(await self._machine(run))
            assert run.rebuild is not None
            more = await run.rebuild.step()
            if not more and not run.complete:
                raise RebuildError(f"blob {run.blob} is rebuilt shorter than it was")
        except OtherBytesError as error:
            await self._stop(run)
            if not run.choice.goes_on(error):
                await self._fail(run, error)
        except EngineError as error:
            # A process can be killed by somebody; a machine that is wrong is wrong twice.
            await self._stop(run)
            run.faults += 1
            if run.faults > 1:
                await self._fail(run, error)
            log.warning("blob %d: %s; the engine is started once more", run.blob, error)
        except CafsError as error:
            await self._fail(run, error)
        except BaseException:
            # What a step has begun and not ended is begun anew by the next reader.
            await self._stop(run)
            raise
        finally:
            self.made_bytes += run.growing.position - before
            self.busy_s += self._clock.monotonic() - began
            run.stepped()

    async def _machine(self, run: Run) -> Rebuild:
        blob, inner = run.blob, run.inner
        parts = await recipe_of(self._blobs, blob)
        if self._blobs.get(blob).mate != inner:
            # It was thawed meanwhile: there is another way to read it.
            raise LostError

        async def of_outer(start: int, end: int) -> bytes | memoryview:
            return await self._reader.read_parts(self._blobs.parts(blob, start, end), start, end)

        source = source_of(
            self._blobs,
            self._reader,
            inner,
            run.choice.engine_of,
            self._workers,
            nested=bool(self._blobs.get(inner).flags & BLOB_NESTED),
            background=False,
        )
        engine_of = run.choice.engine_of
        return Rebuild(
            parts, of_outer, source, engine_of, self._workers, run.sink, background=False
        )

    async def _stop(self, run: Run) -> None:
        rebuild, run.rebuild, run.engaged = run.rebuild, None, False
        self._room.unpark()
        if rebuild is not None:
            with trio.CancelScope(shield=True):
                await rebuild.close()

    async def _fail(self, run: Run, error: CafsError) -> None:
        if isinstance(error, (EngineError, RebuildError)):
            failed: CafsError = RebuildError(
                f"blob {run.blob}, which was taken apart, cannot be rebuilt: {error}"
            )
        else:
            failed = error
        run.failed = failed
        await self._end(run)
        # One whose file was deleted meanwhile has lost nothing that anybody wants.
        self.failed += self._blobs.aged.wanted(run.blob)
        raise failed from error

    async def _lose(self, run: Run) -> None:
        """It does not have what it should: nobody else has to find that out."""
        async with run.lock:
            await self._end(run)

    async def _end(self, run: Run) -> None:
        """Let go of a run: whoever comes now begins another."""
        if run not in self._runs:
            return
        self._runs.remove(run)
        try:
            await self._stop(run)
            with trio.CancelScope(shield=True):
                await self._workers.run(run.growing.close)
        finally:
            self._blobs.aged.let_go(run.inner)

    # -- slow readers ------------------------------------------------------------------------

    async def fill(self) -> None:
        """Make what is read slowly to its end, step by step and one after the other; for ever."""
        while True:
            run = self._to_fill()
            if run is None:
                await self._slow.park()
                continue
            try:
                async with run.lock:
                    if run in self._runs and not run.complete:
                        await self._step(run)
                if run.complete:
                    await self._settle(run)
            except LostError:
                await self._lose(run)
            except CafsError as error:
                # Whoever reads on tries again, and hears of it.
                log.debug("%s", error)

    def _to_fill(self) -> Run | None:
        """The one that is the first to be through, so that its engine is free the soonest."""
        free = sum(run.counts for run in self._runs) < ENGINES_MAX
        runs = [
            run
            for run in self._runs
            if run.slow
            and run.failed is None
            and run.growing.filed
            and not run.complete
            and run.idle_s() < FILLED_S
            and (run.engaged or free)
        ]
        return min(runs, key=lambda run: run.left, default=None)

    # -- life --------------------------------------------------------------------------------

    async def look_after(self) -> None:
        """End what nobody has read from for long; to be called now and then."""
        for run in list(self._runs):
            if run.idle_s() >= self.idle_max_s and not run.lock.locked():
                await self._end(run)

    async def close(self) -> None:
        """End everything."""
        for run in self._runs:
            run.failed = RebuildError("the store is being closed")
        self._room.unpark_all()
        for run in list(self._runs):
            async with run.lock:
                await self._end(run)

    async def forget(self, blob: BlobNo) -> None:
        """A blob is not aged any more: what was kept of it goes."""
        for run in [run for run in self._runs if run.blob == blob and not run.waiting]:
            async with run.lock:
                await self._end(run)
        await self._workers.run(lambda: self.cache.drop(blob))
