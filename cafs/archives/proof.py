"""A rebuild for nobody's sake: only to see whether the bytes come out as they were.

Invariant: a Proof is given only when every check was right and the SHA-256 of the whole is that
of the blob.  Belongs to the event loop; its engines stand back for everything else.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import trio

from cafs.archives.rebuild import EngineOf, Fetch, Rebuild, Source
from cafs.archives.segments import LeftError
from cafs.blobs import recipe
from cafs.blobs.recipe import Part
from cafs.clock import Clock
from cafs.errors import RebuildError
from cafs.index.layout import BlobRecord
from cafs.workers import Workers

PATIENCE_S: Final = 2.0
"""Seconds of a processor that an engine may take for one part of an archive.  A reader has to wait
for so long without a byte, and several times as long on a busy machine; a part of most archives
takes a tenth."""


class Proof(NamedTuple):
    """An archive was rebuilt as it was."""

    size: int
    """Bytes that were made."""
    busy_s: float
    """Time that this took, without pauses."""


class PartIndex:
    """Parts of a recipe that is not in the index, found by their place."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(part.length for part in parts)][:-1]

    def within(self, start: int, end: int) -> Iterator[tuple[int, Part]]:
        """Parts that overlap bytes [start, end), each with its first byte."""
        for index in range(max(0, bisect_right(self._starts, start) - 1), len(self._parts)):
            if self._starts[index] >= end:
                return
            yield self._starts[index], self._parts[index]


async def rebuild_and_compare(
    parts: Sequence[Part],
    record: BlobRecord,
    outer: Fetch,
    inner: Source,
    engine_of: EngineOf,
    workers: Workers,
    clock: Clock,
    pace: Callable[[], Awaitable[None]] | None,
    patience_s: float = math.inf,
) -> Proof:
    """Rebuild what *parts* say and compare it with a blob's size and SHA-256.

    *inner* is closed in the end; *pace* is awaited between steps.  Raises RebuildError,
    EngineError, ChunkDamagedError, and LeftError when a part takes an engine longer than
    *patience_s*.
    """
    sha256 = hashlib.sha256()
    size = busy = 0.0

    def sink(data: bytes | memoryview) -> None:
        nonlocal size
        size += len(data)
        sha256.update(data)

    if recipe.total_length(parts) != record.size:
        raise RebuildError("its recipe has another length than it has")
    rebuild = Rebuild(parts, outer, inner, engine_of, workers, sink, background=True)
    try:
        more = True
        while more:
            began = clock.monotonic()
            more = await rebuild.step()
            busy += clock.monotonic() - began
            if rebuild.longest_s > patience_s:
                raise LeftError("a part of it takes too long to be made")
            if pace is not None:
                await pace()
    finally:
        with trio.CancelScope(shield=True):
            await rebuild.close()
    if size != record.size or sha256.digest() != record.sha256:
        raise RebuildError("it is rebuilt with another SHA-256 than it has")
    return Proof(record.size, busy)
