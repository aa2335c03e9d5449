"""Which pass takes an archive, made ready for it: its engines, its bounds, its zip's directory.

Belongs to the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import trio

from cafs.archives import zip_format, zlib_engine
from cafs.archives.engine import Engine
from cafs.archives.engine_kinds import KINDS
from cafs.archives.engines import Engines
from cafs.archives.gzip_format import Header
from cafs.archives.gzip_pass import GzipPass
from cafs.archives.inner import InnerWriter
from cafs.archives.inside import Inside, NestedSeen
from cafs.archives.kind import ZIP
from cafs.archives.nested_file import STAND_INS
from cafs.archives.segments import Bounds, LeftError
from cafs.archives.trial import Guess, Sample, Seen, Trials
from cafs.archives.zip_format import Member
from cafs.archives.zip_pass import ZipPass
from cafs.blobs import recipe
from cafs.blobs.recipe import Part
from cafs.errors import EngineError
from cafs.workers import Workers

PIECE: Final = 256 << 10
"""Bytes of a zip's directory that are read at once."""
AHEAD: Final = 64 << 10
"""Bytes that are read for a header in a zip: with it come those of short members behind it."""

Pass = GzipPass | ZipPass
Read = Callable[[int, int], Awaitable[bytes | memoryview]]
"""Bytes [start, end) of the archive."""


class Passes:
    """Makes passes, and keeps in mind which guesses were right."""

    def __init__(self, engines: Engines, workers: Workers, bounds: Bounds) -> None:
        self._engines = engines
        self._workers = workers
        self._bounds = bounds
        self.seen = Seen()
        self._nested_seen = NestedSeen()

    def of_gzip(self, inner: InnerWriter, outer: InnerWriter, depth: int) -> GzipPass:
        """For a gzip file; archives up to *depth* deep inside it are taken apart, too.

        Raises EngineError.
        """
        engines, trials = self._ready(), Trials(self.seen)

        def guesses(sample: Sample, header: Header) -> list[Guess]:
            return trials.guesses(sample, engines, header)

        inside = Inside(engines, self._nested_seen, depth)
        return GzipPass(inner, outer, guesses, self._bounds, inside)

    async def of_zip(
        self, inner: InnerWriter, outer: InnerWriter, size: int, read: Read
    ) -> ZipPass:
        """For a zip.  Raises LeftError, EngineError; what *read* raises."""
        engines = self._ready()
        scan = _Scan(size)
        wanted = scan.wanted
        while wanted is not None:
            low, high = wanted
            pieces = []
            for start in range(low, high, PIECE):
                pieces.append(await read(start, min(high, start + PIECE)))
                await trio.lowlevel.checkpoint()
            # In a thread: there may be tens of thousands of members.
            wanted = await self._workers.run(partial(scan.go_on, low, pieces))
        members = scan.members
        trials = Trials(self.seen)

        def guesses(sample: Sample) -> list[Guess]:
            return trials.guesses(sample, engines)

        return ZipPass(inner, outer, guesses, self._bounds, members, size)

    def complete(self, kind: str) -> bool:
        """Whether all engines may be used that are known to make archives of a kind."""
        there = {engine.kind for engine in self._engines.anew()}
        return there.issuperset((zlib_engine.KIND,) if kind == ZIP else KINDS)

    def _ready(self) -> list[Engine]:
        engines = self._engines.anew()
        if not engines:
            raise EngineError("no engine may be used to take archives apart")
        return engines

    async def numbered(self, parts: list[Part]) -> list[Part]:
        """Parts of an inner blob, with the numbers of the engines that make archives inside.

        They are laid down before anything is proven, so the engines have numbers by then.
        Raises EngineError; DiskFullError and its kin.
        """
        stand_ins = {recipe.made(part).engine for part in parts if part.kind == recipe.MADE}
        if not stand_ins:
            return parts
        engines = {each.kind: each for each in self._ready()}
        numbers = {}
        for stand_in in stand_ins:
            engine = engines.get(STAND_INS[stand_in - 1])
            if engine is None:
                raise EngineError("an engine may not be used any more")
            await self._workers.run(partial(self._engines.keep, engine))
            numbers[stand_in] = self._engines.number(engine)
        return [_with_engine(part, numbers) if part.kind == recipe.MADE else part for part in parts]


class _Scan:
    """Finds the members of a zip in as few steps as it takes reads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._scan = zip_format.scan(size)
        self.members: list[Member] = []
        self.wanted: tuple[int, int] | None = self._ahead(*next(self._scan))
        """First and last byte of what is to be read first."""

    def go_on(self, low: int, pieces: Sequence[bytes | memoryview]) -> tuple[int, int] | None:
        """Go on as far as the bytes from *low* on lead; which are needed next, None for no more.

        In a worker thread.  Raises LeftError.
        """
        data = b"".join(pieces)
        offset, length = self._asked
        if len(data) < length:
            raise LeftError("its recipe is too short")
        try:
            while low <= offset and offset + length <= low + len(data):
                offset, length = self._scan.send(data[offset - low : offset - low + length])
        except StopIteration as found:
            if found.value.reason or not found.value.members:
                raise LeftError(found.value.reason or "it has no deflated members") from None
            self.members = found.value.members
            return None
        return self._ahead(offset, length)

    def _ahead(self, offset: int, length: int) -> tuple[int, int]:
        self._asked = (offset, length)
        return offset, min(self._size, offset + max(length, AHEAD))


def _with_engine(part: Part, numbers: dict[int, int]) -> Part:
    how = recipe.made(part)
    return recipe.made_part(part.length, how._replace(engine=numbers[how.engine]))
