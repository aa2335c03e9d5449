"""Which pass takes an archive, made ready for it: its engines, its bounds, its zip's directory.

Belongs to the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from cafs.archives import zip_format
from cafs.archives.engine import Engine
from cafs.archives.engines import Engines
from cafs.archives.gzip_format import Header
from cafs.archives.gzip_pass import GzipPass
from cafs.archives.inner import InnerWriter
from cafs.archives.inside import Inside, NestedSeen
from cafs.archives.nested_file import STAND_INS
from cafs.archives.segments import Bounds, LeftError
from cafs.archives.trial import Guess, Sample, Seen, Trials
from cafs.archives.zip_pass import MEMBERS_MAX, ZipPass
from cafs.blobs import recipe
from cafs.blobs.recipe import Part
from cafs.errors import EngineError
from cafs.workers import Workers

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
        scan = zip_format.scan(size)
        try:
            wanted = next(scan)
            while True:
                offset, length = wanted
                wanted = scan.send(bytes(await read(offset, offset + length)))
        except StopIteration as found:
            members = found.value.members
            reason = found.value.reason
        if reason or not members:
            raise LeftError(reason or "it has no deflated members")
        if len(members) > MEMBERS_MAX:
            raise LeftError("too many members")

        trials = Trials(self.seen)

        def guesses(sample: Sample) -> list[Guess]:
            return trials.guesses(sample, engines)

        return ZipPass(inner, outer, guesses, self._bounds, members, size)

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


def _with_engine(part: Part, numbers: dict[int, int]) -> Part:
    how = recipe.made(part)
    return recipe.made_part(part.length, how._replace(engine=numbers[how.engine]))
