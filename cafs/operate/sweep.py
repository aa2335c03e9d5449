"""Sweep: taking out blobs and chunks that nothing refers to, and what removed directories held.

Deleting only counts references down; what reaches zero is queued in the index.  The sweep works
the queue off in slices of a few milliseconds, so that it may stop at any point and nobody has
to wait for it.  Bytes in packs stay where they are: compaction gives them back.
"""

from __future__ import annotations

import logging
from itertools import islice

import trio

from cafs.errors import CafsError
from cafs.index import layout
from cafs.notices import InodeChanged
from cafs.store import Store
from cafs.types import BlobNo, ChunkNo

log = logging.getLogger(__name__)

PAUSE_S = 0.5
SLICE_S = 0.002
"""Time at a stretch: about what a dozen requests of the mount take."""
PARTS_AT_ONCE = 256
LOOK_AHEAD = 256
NAMES_AT_ONCE = 16
"""Names that go between two looks at the clock."""
STUCK_S = 600.0
"""What met damage is tried again after this time."""
STUCK_MAX = 100_000


class _Walk:
    """A walk through the queue, over and over until nothing went from its start to its end."""

    def __init__(self) -> None:
        self.position = b""
        self.fruitful = False


class Sweeper:
    """Works the queue of the dead off.  Belongs to the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stuck: dict[bytes, float] = {}
        """What met damage, and when it is tried again."""
        self._changed: list[InodeChanged] = []
        self.swept = 0
        """Names, blobs and chunks taken out since the store was opened."""

    async def run(self) -> None:
        """Sweep whenever there is something, for ever."""
        while True:
            await trio.sleep(PAUSE_S)
            try:
                await self.once(self._store.options.sweep_rate)
            except CafsError as error:
                log.warning("sweep stopped for now: %s", error)
            except Exception:
                # It must not end the mount: what is dead or removed only stays a while longer.
                log.exception("defect in the sweep: it begins anew")

    async def once(self, rate: float | None = None) -> int:
        """Sweep until the queue is empty; how many went.  *rate* bounds them per second."""
        total = 0
        walk = _Walk()
        while True:
            began = self._store.clock.monotonic()
            count, more = self._slice(walk)
            total += count
            self.swept += count
            if self._changed:
                changed, self._changed = self._changed, []
                await self._store.notices.tell(changed)
            if not more:
                return total
            await self._store.make_room()
            spent = self._store.clock.monotonic() - began
            pause = max(0.0, count / rate - spent) if rate else 0.0
            await trio.sleep(pause)

    def _slice(self, walk: _Walk) -> tuple[int, bool]:
        """A few milliseconds of sweeping: how many went, and whether there may be more."""
        store = self._store
        now_ns = store.clock.now_ns()
        end = store.clock.monotonic() + SLICE_S
        count = 0
        while store.tree.detached:
            swept = store.nameless.sweep_detached(NAMES_AT_ONCE)
            count += swept.entries
            self._changed += map(InodeChanged, swept.changed)
            if store.clock.monotonic() > end:
                return count, True
        scan = store.overlay.scan(layout.DEAD, walk.position, b"")
        keys = [key for key, _ in islice(scan, LOOK_AHEAD)]
        if not keys:
            again = walk.fruitful
            walk.position, walk.fruitful = b"", False
            return count, again
        for key in keys:
            walk.position = key
            if not self._is_stuck(key):
                try:
                    went = self._take(key, now_ns, end)
                except CafsError as error:
                    self._leave(key, error)
                    went = False
                if went is None:
                    return count, True
                count += went
                walk.fruitful |= went
            if store.clock.monotonic() > end:
                break
        # What could not go (somebody holds it) stays behind; do not spin on it.
        walk.position += b"\0"
        return count, True

    def _take(self, key: bytes, now_ns: int, end: float) -> bool | None:
        """Take one out of the queue: whether it went; None when that takes longer than *end*."""
        store, number = self._store, int.from_bytes(key[1:], "big")
        if not key.startswith(b"b"):
            return store.chunks.sweep(ChunkNo(number), now_ns)
        while not store.blobs.sweep(BlobNo(number), PARTS_AT_ONCE):
            if store.clock.monotonic() > end:
                return None
        return not store.blobs.aged.held(BlobNo(number))

    def _is_stuck(self, key: bytes) -> bool:
        return key in self._stuck and self._store.clock.monotonic() < self._stuck[key]

    def _leave(self, key: bytes, error: CafsError) -> None:
        """Something of it is damaged: it keeps its space, and all else goes."""
        if key not in self._stuck:
            what = "blob" if key.startswith(b"b") else "chunk"
            text = "dead %s %d stays, because of damage: %s; what to do: cafs check %s --repair"
            log.error(text, what, int.from_bytes(key[1:], "big"), error, self._store.path)
        if len(self._stuck) >= STUCK_MAX:
            self._stuck.clear()
        self._stuck[key] = self._store.clock.monotonic() + STUCK_S
