"""How many bytes of a blob are holes, kept up instead of counted anew.

A file with many holes has as many parts, and each change of it would have to go through them
all.  Belongs to the event loop.  Invariant: what is known of a blob is what its recipe says.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from cafs.types import BlobNo

KEPT_MAX: Final = 65_536
"""Blobs that are kept in mind; one that is forgotten is counted once more."""


class HoleSums:
    """Bytes in holes, of blobs that have any and were asked about or changed lately."""

    def __init__(self) -> None:
        self._sums: OrderedDict[BlobNo, int] = OrderedDict()

    def get(self, number: BlobNo) -> int | None:
        """What is known of a blob; None for nothing."""
        return self._sums.get(number)

    def set(self, number: BlobNo, length: int) -> None:
        """A blob has so many bytes in holes."""
        self._sums[number] = length
        self._sums.move_to_end(number)
        if len(self._sums) > KEPT_MAX:
            self._sums.popitem(last=False)

    def add(self, number: BlobNo, change: int) -> None:
        """Its recipe was changed by so many; of one that is not known that says nothing."""
        known = self._sums.get(number)
        if known is not None:
            self.set(number, known + change)

    def drop(self, number: BlobNo) -> None:
        """The blob is about to go."""
        self._sums.pop(number, None)
