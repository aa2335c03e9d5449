"""One archive taken apart: recognised, stored as what is inside it, proven, and only then swapped.

The order is the promise.  First the inner blob and the new recipe are stored beside what there
is, as recipes in the making that nobody refers to.  Then the archive is rebuilt from exactly
these, and its SHA-256 compared with the blob's.  Only then, in one change of the index, do they
take the place of the plain recipe.  Whatever stops it before, a fault or a kill, leaves the blob
as it was, and what was stored to the sweep.  Belongs to the event loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import trio

from cafs.archives.choice import Choice
from cafs.archives.engine import Engine
from cafs.archives.engine_run import DEPTH_MAX, OtherBytesError
from cafs.archives.engines import Engines
from cafs.archives.gzip_pass import GzipPass
from cafs.archives.inner import InnerWriter
from cafs.archives.kind import GZIP, MAGIC_BYTES, kind_of
from cafs.archives.nested import source_of
from cafs.archives.own_bytes import own_bytes
from cafs.archives.passes import Passes
from cafs.archives.proof import PATIENCE_S, PartIndex, Proof, rebuild_and_compare
from cafs.archives.rebuild import EngineOf, Source, recipe_of
from cafs.archives.segments import (
    Bounds,
    LeftError,
    UnmadeError,
    engines_of_choice,
    outer_recipe,
)
from cafs.archives.work import Work
from cafs.archives.zip_pass import ZipPass
from cafs.blobs.blobs import Blobs
from cafs.blobs.ingest import Ingest
from cafs.blobs.reader import Reader
from cafs.blobs.recipe import Part
from cafs.clock import Clock
from cafs.errors import EngineError, RebuildError
from cafs.index.layout import BLOB_AGED, BLOB_LEFT, BLOB_NESTED, PARTS_PER_ROW, BlobRecord
from cafs.types import BlobNo
from cafs.workers import Workers

log = logging.getLogger(__name__)

PIECE: Final = 256 << 10
"""Bytes of the archive that are read at once: mostly some tenths of a second of work ..."""
WORK_S: Final = 0.2
"""... and after so long others get their turn."""
ROWS_AT_ONCE: Final = 4 * PARTS_PER_ROW
CHOICES_MAX: Final = 4
READERS_S: Final = 60.0
"""How long an archive that is ready waits for those who have it open ..."""
LOOK_S: Final = 0.5
"""... and how often it looks."""
_READ: Final = "somebody has it open"


class Outcome(NamedTuple):
    """What became of one archive."""

    blob: BlobNo
    kind: str
    """As kind_of() says."""
    reason: str
    """Why it was left as it is; empty if it was taken apart."""
    lasting: bool
    """Whether it would be left another time, too: then its record says so."""
    size: int
    """Bytes of the archive."""
    plain_bytes: int
    """Stored bytes that only its plain recipe needed: the sweep frees them."""
    added_bytes: int
    """Stored bytes that were added for what is inside it."""
    inner_size: int
    """Bytes of what is inside it."""
    seconds: float
    """Time it took, with all pauses."""

    @property
    def done(self) -> bool:
        """Whether it was taken apart."""
        return not self.reason

    @property
    def gained_bytes(self) -> int:
        """Stored bytes that this saves, as soon as the sweep was there; may be below 0."""
        return self.plain_bytes - self.added_bytes if self.done else 0


class Surroundings(NamedTuple):
    """What taking apart needs of its store."""

    blobs: Blobs
    reader: Reader
    ingest: Ingest
    engines: Engines
    workers: Workers
    """For background work: at nice 19."""
    clock: Clock
    bounds: Bounds
    busy: Callable[[BlobNo], bool]
    """Whether somebody is writing on top of a blob."""
    open: Callable[[BlobNo], bool]
    """Whether somebody has a file open that has this blob."""
    prepare: Callable[[], Awaitable[None]]
    """Makes sure that the store may hold aged blobs.  Raises DiskFullError and its kin."""
    admit: Callable[[], Awaitable[None]]
    """Waits for room in the overlay.  Raises DiskFullError and its kin on an ill disk."""


class TakeApart:
    """Takes archives apart, one at a time."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._passes = Passes(around.engines, around.workers, around.bounds)
        self.pace: Callable[[], Awaitable[None]] | None = None
        """Awaited between steps, if set: how ageing yields to others."""
        self.proof_s = 0.0
        """How long the last archive took to be made again, without pauses."""

    async def take_apart(self, blob: BlobNo) -> Outcome:
        """Take an archive apart if it is one, can be made again, and nobody writes on top of it.

        Raises DiskFullError and its kin, ChunkDamagedError; then everything is as it was.
        """
        around = self._around
        began = around.clock.monotonic()
        record = around.blobs.get(blob)
        kind, reason, lasting = "", "", False
        work: Work | None = None
        around.blobs.aged.hold(blob)
        try:
            kind = kind_of(bytes(await around.reader.read(blob, 0, min(MAGIC_BYTES, record.size))))
            if not self._may(blob):
                reason = "it is being written to, or is not plain"
            elif around.open(blob):
                reason = _READ
            elif record.flags & BLOB_LEFT:
                reason, lasting = "it was looked at before", True
            elif not kind:
                reason, lasting = "it is no archive", True
            elif around.blobs.hole_bytes(blob):
                # The exchange would refuse it: files remember how much of them is holes.
                reason, lasting = "it has holes", True
            else:
                await around.prepare()
                depth = DEPTH_MAX
                while depth >= 0:
                    if work is not None:
                        log.debug("blob %d: %s; again, %d deep", blob, reason, depth)
                        spent, work = work, None
                        spent.tidy()
                    work = Work(around.ingest, around.blobs, depth)
                    reason, lasting = await self._try(blob, record, kind, work)
                    depth = work.tried_depth - 1 if lasting else -1
            if work is not None and work.unmade and not self._passes.complete(kind):
                lasting = False
            if lasting and self._may(blob):
                around.blobs.aged.leave(blob)
        finally:
            around.blobs.aged.let_go(blob)
            if work is not None:
                work.tidy()
        return Outcome(
            blob,
            kind,
            reason,
            lasting,
            record.size,
            work.plain_bytes if work is not None else 0,
            work.added_bytes if work is not None else 0,
            work.inner.size if work is not None else 0,
            around.clock.monotonic() - began,
        )

    async def prove(self, blob: BlobNo, engine: Engine | None = None) -> Proof:
        """Rebuild an aged blob and compare; with *engine* in the place of those it was made with.

        Raises RebuildError when it is not what it was, EngineError when an engine fails,
        ChunkDamagedError.
        """
        around = self._around
        record = around.blobs.get(blob)
        if not record.flags & BLOB_AGED:
            raise RebuildError(f"blob {blob} is not taken apart")

        choice = Choice(around.engines)

        def engine_of(number: int) -> Engine:
            made_with = choice.engine_of(number)
            return made_with if engine is None or engine.kind != made_with.kind else engine

        around.blobs.aged.hold(blob)
        around.blobs.aged.hold(record.mate)
        try:
            parts = await recipe_of(around.blobs, blob)
            nested = bool(around.blobs.get(record.mate).flags & BLOB_NESTED)
            while True:
                source = self._source(record.mate, engine_of, nested=nested)
                try:
                    return await self._rebuild(record, parts, source, engine_of)
                except OtherBytesError as error:
                    if engine is not None or not choice.goes_on(error):
                        raise
        finally:
            around.blobs.aged.let_go(record.mate)
            around.blobs.aged.let_go(blob)

    # -- steps -------------------------------------------------------------------------------

    def _may(self, blob: BlobNo) -> bool:
        return self._around.blobs.aged.may_swap(blob) and not self._around.busy(blob)

    async def _try(
        self, blob: BlobNo, record: BlobRecord, kind: str, work: Work
    ) -> tuple[str, bool]:
        """Why it is left, and whether for good; ("", False) if it was taken apart."""
        try:
            await self._store(blob, record, kind, work)
            await self._prove_one_choice(blob, record, work)
            await self._weigh(blob, work)
        except LeftError as error:
            work.unmade = isinstance(error, UnmadeError)
            return str(error), True
        except EngineError as error:
            return str(error), False
        assert work.outer_no is not None
        if not await self._is_let_go_of(blob):
            return _READ, False
        if not self._may(blob):
            return "it was changed meanwhile", False
        # From here on there is no checkpoint until all is exchanged.
        work.swapped = self._around.blobs.aged.swap(
            blob, work.outer_no, work.inner_no, work.inner_sha256, nested=work.nested
        )
        if not work.swapped:
            return "it was changed meanwhile", False
        return "", False

    async def _is_let_go_of(self, blob: BlobNo) -> bool:
        """Wait until nobody has it open, or it may not be exchanged anyway; False if that takes
        too long.

        Who is in the midst of it would have to wait for all that lies before to be made.
        """
        clock = self._around.clock
        until = clock.monotonic() + READERS_S
        while self._may(blob) and self._around.open(blob):
            if clock.monotonic() >= until:
                return False
            await trio.sleep(LOOK_S)
        return True

    async def _store(self, blob: BlobNo, record: BlobRecord, kind: str, work: Work) -> None:
        around = self._around

        async def read(start: int, end: int) -> bytes | memoryview:
            return await around.reader.read(blob, start, end)

        one: GzipPass | ZipPass
        if kind == GZIP:
            one = self._passes.of_gzip(work.inner, work.outer, work.depth)
            work.gzip = one
        else:
            one = await self._passes.of_zip(work.inner, work.outer, record.size, read)
        for start in range(0, record.size, PIECE):
            await self._pause()
            end = min(start + PIECE, record.size)
            data = bytes(await read(start, end))
            if len(data) != end - start:
                raise LeftError("its recipe is too short")
            await self._go_through(one.push(data), work)
        await self._go_through(one.end(), work)
        work.segments = await around.workers.run(one.finish)
        work.pinned = [part for part in work.segments if isinstance(part, Part)]
        work.inner_sha256 = await around.workers.run(work.inner.finish)
        await self._draft(work, work.inner_no, work.inner, final=True)

    async def _go_through(self, steps: Iterator[None], work: Work) -> None:
        """Take all steps of a pass, and bring what they store into its recipe."""
        around = self._around
        while await around.workers.run(partial(_go_on, steps, around.clock)):
            await self._draft(work, work.inner_no, work.inner, final=False)
            await self._pause()
        await self._draft(work, work.inner_no, work.inner, final=False)

    async def _weigh(self, blob: BlobNo, work: Work) -> None:
        """What the exchange will free, and what it takes: both as the sweep will see it.

        Not what was written meanwhile: that would leave out what lay there for the sweep, and
        the archive would seem to save more.
        """
        blobs = self._around.blobs
        assert work.outer_no is not None
        work.plain_bytes = await own_bytes(blobs, blob, self._pause)
        work.added_bytes = 0
        for drafted in (work.inner_no, work.outer_no):
            work.added_bytes += await own_bytes(blobs, drafted, self._pause)

    async def _draft(
        self, work: Work, drafted: BlobNo, writer: InnerWriter, *, final: bool
    ) -> None:
        """Bring what a writer has stored into a recipe in the making."""
        while parts := writer.take(ROWS_AT_ONCE, final=final):
            pinned = work.pinned
            work.pinned = [*pinned, *parts]
            numbered = await self._passes.numbered(parts)
            work.pinned = pinned
            self._around.blobs.aged.extend(drafted, numbered)
            await self._pause()

    async def _pause(self) -> None:
        await self._around.admit()
        if self.pace is not None:
            await self.pace()

    async def _prove_one_choice(self, blob: BlobNo, record: BlobRecord, work: Work) -> None:
        """Find the choice of engines that makes the archive, and draft its recipe."""
        around = self._around
        guesses = [len(each.guesses) for each in work.segments if not isinstance(each, Part)]
        most = min(max(guesses), CHOICES_MAX)
        engine_of = around.engines.rebuilder
        for choice in range(most):
            # As it will be read: an engine of this kind may have a number that stands for another
            # program, and a proof with any other than that proves nothing.
            parts = await self._outer_recipe(work, choice)
            source = self._source(work.inner_no, engine_of, nested=work.nested)
            try:
                proof = await self._rebuild(record, parts, source, engine_of, PATIENCE_S)
                self.proof_s = proof.busy_s
            except (RebuildError, EngineError) as error:
                log.debug("blob %d: choice %d: %s", blob, choice, error)
                if choice + 1 < most:
                    continue
                if isinstance(error, EngineError):
                    raise
                raise UnmadeError(f"it is not rebuilt as it was: {error}") from error
            await self._draft_outer(work, choice, parts)
            return

    async def _outer_recipe(self, work: Work, choice: int) -> list[Part]:
        """The recipe by one choice; its engines are kept, and have their numbers.

        Raises EngineError; DiskFullError and its kin.
        """
        engines, workers = self._around.engines, self._around.workers
        # In a thread: it may be long.
        chosen = await workers.run(partial(engines_of_choice, work.segments, choice))
        for engine in chosen:
            await workers.run(partial(engines.keep, engine))
        numbers = {engine: engines.number(engine) for engine in chosen}
        return await workers.run(partial(outer_recipe, work.segments, choice, numbers))

    async def _draft_outer(self, work: Work, choice: int, parts: list[Part]) -> None:
        around = self._around
        for segment in work.segments:
            if not isinstance(segment, Part):
                self._passes.seen.remember(segment.guesses[min(choice, len(segment.guesses) - 1)])
        work.outer_no = around.blobs.aged.begin()
        for start in range(0, len(parts), ROWS_AT_ONCE):
            # No checkpoint between the two: a part is either counted or still to be let go of.
            around.blobs.aged.extend(work.outer_no, parts[start : start + ROWS_AT_ONCE])
            work.pinned = parts[start + ROWS_AT_ONCE :]
            if work.pinned:
                await self._pause()

    def _source(self, inner: BlobNo, engine_of: EngineOf, *, nested: bool) -> Source:
        around = self._around
        return source_of(
            around.blobs,
            around.reader,
            inner,
            engine_of,
            around.workers,
            nested=nested,
            background=True,
        )

    async def _rebuild(
        self,
        record: BlobRecord,
        parts: Sequence[Part],
        inner: Source,
        engine_of: EngineOf,
        patience_s: float = math.inf,
    ) -> Proof:
        around = self._around
        index = PartIndex(parts)
        return await rebuild_and_compare(
            parts,
            record,
            lambda start, end: around.reader.read_parts(index.within(start, end), start, end),
            inner,
            engine_of,
            around.workers,
            around.clock,
            self.pace,
            patience_s,
        )


def _go_on(steps: Iterator[None], clock: Clock) -> bool:
    """Take some steps of a pass; whether there may be more.  In a worker thread."""
    until = clock.monotonic() + WORK_S
    return any(clock.monotonic() >= until for _ in steps)
