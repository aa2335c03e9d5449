"""Changed ranges of a file that is not written from start to end.

A spool is an unlinked temporary file that holds the changed bytes at their own offsets, and the
set of ranges that are in it.  It is void after a crash: what counts is what was committed.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cafs.durable import Disk

PIECES_MAX = 64
"""Pieces that a write is split into: each is a call, and the event loop waits for it."""


class Ranges:
    """A set of half-open, disjoint ranges in ascending order; touching ones are joined."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.length = 0
        """Of all ranges together."""

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def add(self, start: int, end: int) -> None:
        """Add [start, end)."""
        if start >= end:
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
            self.length -= self._length(low, high)
        self.length += end - start
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def cut(self, size: int) -> None:
        """Remove what lies at or beyond *size*."""
        keep = bisect_left(self._starts, size)
        self.length -= self._length(keep, len(self._starts))
        del self._starts[keep:], self._ends[keep:]
        if self._ends and self._ends[-1] > size:
            self.length -= self._ends[-1] - size
            self._ends[-1] = size

    def _length(self, low: int, high: int) -> int:
        return sum(self._ends[low:high]) - sum(self._starts[low:high])

    def clear(self) -> None:
        """Remove all."""
        self._starts.clear()
        self._ends.clear()
        self.length = 0

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of the ranges that lie in [start, end)."""
        index = bisect_right(self._ends, start)
        while index < len(self._starts) and self._starts[index] < end:
            yield max(start, self._starts[index]), min(end, self._ends[index])
            index += 1

    def end_around(self, offset: int) -> int:
        """The end of the range that has *offset* in it or touches it; 0 if none does."""
        index = bisect_left(self._ends, offset)
        if index < len(self._starts) and self._starts[index] <= offset:
            return self._ends[index]
        return 0


class Spool:
    """One temporary file."""

    def __init__(self, disk: Disk, directory: Path, name: str) -> None:
        path = directory / name
        self._disk = disk
        self._fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        disk.unlink(path)
        self.ranges = Ranges()

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at *offset*.  Raises DiskFullError and its kin.

        On a full disk nothing has changed then, unless a great many pieces are written over:
        what takes room is written first.  A disk that fails may have some of it in the place of
        what was there.
        """
        end = offset + len(data)
        there = list(islice(self.ranges.within(offset, end), PIECES_MAX + 1))
        if len(there) > PIECES_MAX:
            there = []
        position = offset
        for low, high in [*there, (end, end)]:
            self._put(data, offset, position, low)
            position = high
        for low, high in there:
            self._put(data, offset, low, high)
        self.ranges.add(offset, end)

    def _put(self, data: bytes, offset: int, low: int, high: int) -> None:
        """Write what of *data*, which begins at *offset*, falls in [low, high)."""
        if low < high:
            part = memoryview(data)[low - offset : high - offset]
            self._disk.pwrite_all(self._fd, [part], low)

    def pieces(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """What is in the spool of bytes [start, end), each piece with its offset."""
        return [
            (low, self._disk.pread_exact(self._fd, high - low, low))
            for low, high in self.ranges.within(start, end)
        ]

    def cut(self, size: int) -> None:
        """Forget what lies at or beyond *size*."""
        self.ranges.cut(size)

    def reset(self) -> None:
        """Forget everything and give the space back."""
        self.ranges.clear()
        self._disk.truncate(self._fd, 0)

    def close(self) -> None:
        """Give the file back."""
        self._disk.close(self._fd)
