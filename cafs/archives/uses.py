"""How often aged blobs were read lately, so that one that is read again and again is thawed.

Kept in memory only: a restart forgets it, which costs a few rebuilds.  Belongs to the event
loop.  Invariant: at most a bounded number of blobs is remembered, the last read ones.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from cafs.clock import Clock
from cafs.types import BlobNo

REMEMBERED: Final = 10_000
"""Blobs: about 200 bytes each."""
PAUSE_S: Final = 60.0
"""A read that comes so long after the last one is another use, wherever it begins."""
WINDOW_S: Final = 86_400.0
"""Uses are counted for a day, then anew: a nightly backup that reads everything thaws nothing."""


class _Use:
    __slots__ = ("count", "first", "last")

    def __init__(self) -> None:
        self.count = 0
        self.first = self.last = float("-inf")


class Uses:
    """Counts uses: a file that is read from its start, or after a pause."""

    def __init__(self, clock: Clock, thaw_after: int) -> None:
        self._clock = clock
        self._thaw_after = thaw_after
        self._uses: OrderedDict[BlobNo, _Use] = OrderedDict()
        self._wanted: OrderedDict[BlobNo, None] = OrderedDict()
        self.reads = 0
        """Uses of aged blobs since the start."""

    def read(self, blob: BlobNo, start: int, times: int = 1) -> None:
        """Somebody reads from byte *start* on, or so many do."""
        use = self._uses.setdefault(blob, _Use())
        self._uses.move_to_end(blob)
        now = self._clock.monotonic()
        if start == 0 or now - use.last >= PAUSE_S:
            if now - use.first >= WINDOW_S:
                use.first, use.count = now, 0
            use.count += times
            self.reads += times
            if use.count >= self._thaw_after:
                self._wanted[blob] = None
        use.last = now
        if len(self._uses) > REMEMBERED:
            self._uses.popitem(last=False)

    def count(self, blob: BlobNo) -> int:
        """How often a blob was used as far as is remembered."""
        use = self._uses.get(blob)
        return use.count if use is not None else 0

    def idle_s(self, blob: BlobNo) -> float:
        """Seconds since a blob was last read; infinite if that is not remembered."""
        use = self._uses.get(blob)
        return self._clock.monotonic() - use.last if use is not None else float("inf")

    def next_to_thaw(self) -> BlobNo | None:
        """A blob that was used often enough to be thawed; each is named once."""
        return self._wanted.popitem(last=False)[0] if self._wanted else None

    def forget(self, blob: BlobNo) -> None:
        """Begin to count anew."""
        self._uses.pop(blob, None)
        self._wanted.pop(blob, None)
