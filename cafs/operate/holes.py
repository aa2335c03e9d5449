"""Holes in packs: the space of dead chunks where there is no room to move those alive.

A hole gives its space back at once and needs none itself, but leaves a file of which copies may
be larger than it is; so it is for disks that are nearly full, and for packs that are too large to
be rewritten.
Invariant: a hole is made only where no chunk lies, by an index that is on disk, and a grace
period after that was found, because another process may still be reading there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import trio

from cafs.blobs.fileheader import HEADER_LENGTH
from cafs.errors import CafsError, DamagedError, DiskFullError
from cafs.index.layout import PackRecord
from cafs.operate.pack_records import records_in
from cafs.store import Store
from cafs.types import PackNo

log = logging.getLogger(__name__)

BLOCK = 4096
AT_ONCE = 1 << 30
"""Dead bytes that are looked for at once: enough to go on with."""
WORTH_IT = 1 << 20
"""Bytes that must have died in a pack since the last look, unless the disk is full."""
CHUNKS_AT_ONCE = 256
"""Chunks that are looked up without letting others in."""

Ranges = list[tuple[int, int]]


@dataclass
class _Found:
    """What was dead in a pack when somebody looked."""

    live_bytes: int
    """Of the pack at that time."""
    seen: float
    """When that was, by the monotonic clock."""
    ranges: Ranges
    """Whole blocks in which no chunk lies; none left when they are holes."""
    failed: bool = field(default=False)
    """Whether the file system takes no holes."""


class Holes:
    """Punches holes.  Belongs to the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[PackNo, _Found] = {}

    def can_do(self, pack: PackNo) -> bool:
        """Whether holes are, or will be, the way to get the pack's space back."""
        found = self._found.get(pack)
        return found is not None and not found.failed

    async def once(self, packs: Iterable[tuple[PackNo, PackRecord]], grace_s: float) -> int:
        """Give back what was found dead in sealed packs a grace ago, and look for more.

        Returns the bytes that were given back.  Raises DiskError and its kin.
        """
        store = self._store
        self._found = {n: each for n, each in self._found.items() if store.pack_table.get(n)}
        ripe = []
        for number, record in self._deadest(packs):
            found = self._found.get(number)
            if found is None or not found.ranges:
                found = await self._look(number, record)
            waited_s = store.clock.monotonic() - found.seen if found is not None else 0.0
            if found is not None and found.ranges and waited_s >= grace_s:
                ripe.append((number, found))
        if not ripe:
            return 0
        # What is dead for us must be dead for an index that is read after a crash, too.
        await store.commit()
        freed = 0
        for number, found in ripe:
            ranges, found.ranges = found.ranges, []
            try:
                freed += await store.workers.run(partial(store.packs.punch, number, ranges))
            except CafsError as error:
                found.failed = True
                log.warning("what is dead in pack %08x cannot be given back: %s", number, error)
        store.space.changed()
        if freed:
            log.info("%d bytes that were dead in %d packs were given back", freed, len(ripe))
        return freed

    def _deadest(
        self, packs: Iterable[tuple[PackNo, PackRecord]]
    ) -> list[tuple[PackNo, PackRecord]]:
        """Those in which something waits, or enough died since the last look, the most first."""
        least = BLOCK if isinstance(self._store.space.problem, DiskFullError) else WORTH_IT
        some = []
        for number, record in packs:
            found = self._found.get(number)
            if found is not None and found.ranges:
                dead = sum(end - start for start, end in found.ranges)
            elif found is not None:
                dead = found.live_bytes - record.live_bytes
            else:
                dead = record.size - HEADER_LENGTH - record.live_bytes
            if dead >= least:
                some.append((dead, number, record))
        some.sort(key=lambda each: -each[0])
        result, total = [], 0
        for dead, number, record in some:
            if total >= AT_ONCE:
                break
            total += dead
            result.append((number, record))
        return result

    async def _look(self, number: PackNo, record: PackRecord) -> _Found | None:
        """Find what is dead; None if that is not sure at the moment."""
        store = self._store
        if number in store.chunks.landing_packs():
            return None
        ranges: Ranges = []
        try:
            ranges, alive = await self._dead_ranges(number, record.size)
            now = store.pack_table.get(number)
            if now is None or now.live_bytes != record.live_bytes:
                return None
            if alive != record.live_bytes:
                # A sidecar that is not whole must not turn chunks into holes.
                raise DamagedError(
                    f"{record.live_bytes} of its bytes are alive, and its sidecar has {alive}"
                )
        except CafsError as error:
            # Whatever it is: other packs may have something to give.
            ranges = []
            log.warning(
                "what is dead in pack %08x is left: %s; what to do: cafs check", number, error
            )
        found = _Found(record.live_bytes, store.clock.monotonic(), ranges)
        self._found[number] = found
        return found

    async def _dead_ranges(self, number: PackNo, size: int) -> tuple[Ranges, int]:
        """Whole blocks of a pack that no chunk record points into, and the bytes alive."""
        chunks = self._store.chunks
        records = await records_in(self._store, number)
        ranges, end, alive = [], HEADER_LENGTH, 0
        for count, record in enumerate(records):
            if count % CHUNKS_AT_ONCE == CHUNKS_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            if chunks.at(record.sha256, number, record.offset) is not None:
                ranges.append((end, record.offset))
                end = record.end
                alive += record.stored_length
        ranges.append((end, size))
        blocks = [(-(-start // BLOCK) * BLOCK, stop // BLOCK * BLOCK) for start, stop in ranges]
        return [(start, stop) for start, stop in blocks if start < stop], alive
