"""Counts by number: how often each inode, blob or chunk was met.

Invariant: takes 4 bytes for each number near one that was met (pages that nothing touched are
never made), and 8 for each that was, so a million chunks take 12 MB where a dict takes 100.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from typing import Final

from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.view import View

_SCAN_FROM: Final = 8
"""From one record wanted in this many, reading all in order is quicker than looking each up."""


class Counts:
    """How often each number below a bound was met."""

    def __init__(self, bound: int) -> None:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._words = memoryview(mmap.mmap(-1, 4 * max(1, bound), flags=private)).cast("I")
        self.met = array("Q")
        """Numbers that were met, in that order."""

    def __getitem__(self, number: int) -> int:
        return self._words[number]

    def __len__(self) -> int:
        return len(self.met)

    def add(self, number: int, times: int = 1) -> int:
        """Count; returns how often it had been met before.  Raises IndexDamagedError."""
        try:
            before = self._words[number]
        except IndexError:
            # Numbers are given out by the counters of the same commit.
            raise IndexDamagedError(f"number {number} was never given out") from None
        if not before:
            self.met.append(number)
        self._words[number] = before + times
        return before

    def records(self, view: View, database: int, total: int) -> Iterator[tuple[int, bytes]]:
        """The records of all numbers that were met, in order of number.

        *total* says about how many records *database* has.  Raises IndexDamagedError when one
        is missing.
        """
        words = self._words
        if len(self.met) * _SCAN_FROM < total:
            for number in sorted(self.met):
                value = view.overlay.get(database, layout.u48(number))
                if value is None:
                    raise _missing(database, number)
                yield number, value
            return
        left = len(self.met)
        for key, value in view.overlay.scan(database, b"", b""):
            number = int.from_bytes(key, "big")
            if number < len(words) and words[number]:
                left -= 1
                yield number, value
        if left:
            raise IndexDamagedError(
                f"{left} records are missing from the index database "
                f"{layout.DATABASES[database].decode()}"
            )


def _missing(database: int, number: int) -> IndexDamagedError:
    return IndexDamagedError(
        f"the index database {layout.DATABASES[database].decode()} has no record {number}"
    )
