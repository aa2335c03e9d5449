"""Numbers of records, and figures beside them, in arrays instead of objects.

What a check needs to count a million files anew: some bytes for each number instead of some
hundred.  Invariant: the numbers are in ascending order and never change once the figures are
counted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left


class Tally:
    """A sorted set of numbers, each with a count and marks.

    Numbers have 48 bits and may be far apart, so they are found by bisection: an array indexed
    by number would grow with all that was ever made instead of what is there.
    """

    def __init__(self) -> None:
        self.numbers = array("Q")
        self.counts = array("L")
        """One for each number; starts at 0."""
        self.marks = bytearray()
        """One byte for each number; bits are the user's."""

    def append(self, number: int) -> None:
        """Add a number that is above all that are there."""
        self.numbers.append(number)

    def ready(self) -> None:
        """All numbers are there: make room for the figures."""
        self.counts = array("L", bytes(array("L").itemsize * len(self.numbers)))
        self.marks = bytearray(len(self.numbers))

    def rank(self, number: int) -> int:
        """The place of a number, or -1."""
        rank = bisect_left(self.numbers, number)
        if rank < len(self.numbers) and self.numbers[rank] == number:
            return rank
        return -1

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, number: int) -> bool:
        """Count one for a number; False when it is not there."""
        rank = self.rank(number)
        if rank < 0:
            return False
        self.counts[rank] += 1
        return True

    def mark(self, number: int, bit: int) -> bool:
        """Set a bit; False when the number is not there."""
        rank = self.rank(number)
        if rank < 0:
            return False
        self.marks[rank] |= bit
        return True
