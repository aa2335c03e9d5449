"""Directories that were just listed, decoded.

Whoever lists a directory lists it again: a resumed readdir(2), the next find(1), a client that
asks each minute.  Belongs to the event loop.  Invariant: what is kept of a directory is all of
its entries as they are, because whoever changes one of them drops it first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from cafs.types import DirEntry, Ino

NAMES_MAX: Final = 65_536
"""Entries that are kept, of all directories together: about 200 bytes each."""
LISTING_MAX: Final = 2_048
"""Entries of the largest directory that is kept: to read them all holds up everybody else."""


class Listings:
    """Listings by directory, the oldest let go of first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Ino, list[DirEntry]] = OrderedDict()
        self._names = 0

    def get(self, directory: Ino) -> list[DirEntry] | None:
        """All entries in cookie order, or None.  Not to be changed by the caller."""
        return self._kept.get(directory)

    def keep(self, directory: Ino, entries: list[DirEntry]) -> None:
        """These are all its entries, at most LISTING_MAX."""
        self.drop(directory)
        self._kept[directory] = entries
        # One more than there are, so that empty directories are bounded, too.
        self._names += len(entries) + 1
        while self._names > NAMES_MAX:
            _, oldest = self._kept.popitem(last=False)
            self._names -= len(oldest) + 1

    def drop(self, directory: Ino) -> None:
        """One of its entries is about to change."""
        entries = self._kept.pop(directory, None)
        if entries is not None:
            self._names -= len(entries) + 1

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()
        self._names = 0
