"""What engines take in, of an inner blob that has made parts itself: archives inside a tar.

Goes through the inner blob once, from its first byte on, and runs the engines of the archives
inside as it comes to them.  Invariant: as for any rebuild, only verified bytes come out, and
only a few MiB of them are in memory.  Belongs to the event loop.
"""

from __future__ import annotations

from cafs.archives.rebuild import EngineOf, Rebuild, Source, Stored, recipe_in_pieces
from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.reader import Reader
from cafs.errors import RebuildError
from cafs.index.layout import BLOB_NESTED
from cafs.types import BlobNo
from cafs.workers import Workers


class Nested:
    """A source that is made while it is read."""

    def __init__(
        self,
        blobs: Blobs,
        reader: Reader,
        inner: BlobNo,
        engine_of: EngineOf,
        workers: Workers,
        *,
        background: bool,
    ) -> None:
        self._blobs = blobs
        self._reader = reader
        self._inner = inner
        self._engine_of = engine_of
        self._workers = workers
        self._background = background
        self._rebuild: Rebuild | None = None
        self._ready = bytearray()
        """What is made and not read yet."""
        self._at = 0
        """Where it begins."""
        self._more = True
        """Whether there may be more to make."""

    async def ready(self, end: int) -> bool:
        """Come a step closer to having all bytes before *end*; whether they are there.

        Raises RebuildError and its kin.
        """
        if self._rebuild is None:
            self._rebuild = self._begin()
        if self._more and self._at + len(self._ready) < end:
            self._more = await self._rebuild.step()
        return not self._more or self._at + len(self._ready) >= end

    async def read(self, start: int, end: int) -> bytes | memoryview:
        """Bytes [start, end), which are the next ones; fewer if there are no more.

        Raises RebuildError and its kin.
        """
        if start != self._at:
            raise RebuildError("what is inside an archive is read from its start to its end")
        while not await self.ready(end):
            pass
        data = bytes(memoryview(self._ready)[: end - start])
        del self._ready[: end - start]
        self._at += len(data)
        return data

    def _begin(self) -> Rebuild:
        def take(data: bytes | memoryview) -> None:
            self._ready += data

        async def stored(start: int, end: int) -> bytes | memoryview:
            return await self._reader.read(self._inner, start, end)

        return Rebuild(
            (),
            stored,
            Stored(stored),
            self._engine_of,
            self._workers,
            take,
            background=self._background,
            more=recipe_in_pieces(self._blobs, self._inner),
            input_follows=True,
        )

    async def close(self) -> None:
        """Let go of the engines."""
        if self._rebuild is not None:
            await self._rebuild.close()


def source_of(
    blobs: Blobs,
    reader: Reader,
    inner: BlobNo,
    engine_of: EngineOf,
    workers: Workers,
    *,
    nested: bool,
    background: bool,
) -> Source:
    """What engines take in of an inner blob; *nested*: it has made parts itself."""
    if nested:
        return Nested(blobs, reader, inner, engine_of, workers, background=background)

    async def stored(start: int, end: int) -> bytes | memoryview:
        return await reader.read(inner, start, end)

    return Stored(stored)


def engines_of(blobs: Blobs, blob: BlobNo) -> set[int]:
    """Numbers of the engines that an aged blob is made with, and what is inside it.

    Raises IndexDamagedError.
    """
    record = blobs.get(blob)
    recipes = [blobs.parts_of(blob, record, 0, record.size)]
    inner = blobs.get(record.mate)
    if inner.flags & BLOB_NESTED:
        recipes.append(blobs.parts_of(record.mate, inner, 0, inner.size))
    return {
        recipe.made(part).engine
        for parts in recipes
        for _, part in parts
        if part.kind == recipe.MADE
    }
