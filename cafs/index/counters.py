"""The figures that must cost O(1) at any size, and the next free numbers.

Kept as plain integers while the store is open and written with each commit, so that they
always agree with the records of the same transaction.

Sizes cost nothing to claim: a million empty files that were made long are more than a u64 holds.
So the two sums of sizes are kept modulo 2^64.  Nothing is lost by that: they are right again, to
the byte, as soon as what they count fits.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, fields, replace
from typing import Final, Self

from cafs.errors import IndexDamagedError

KEY = b"counters"
AHEAD: Final = 1 << 24
"""Inode numbers that are passed over when a daemon was killed, or the index is an older one: more
than are given out between two commits, which mount.overlay_limit bounds."""
_U64 = struct.Struct("<Q")
_SUM_MASK = (1 << 64) - 1


def wrapped(sum_: int) -> int:
    """A sum of sizes as the record has it."""
    return sum_ & _SUM_MASK


@dataclass
class Counters:
    """Every field is a u64 of the record, in this order."""

    generation: int = 0
    """Commits so far."""
    next_ino: int = 2
    next_blob: int = 1
    next_chunk: int = 1
    next_pack: int = 1
    inodes: int = 0
    """Inodes of any type that have a name."""
    files: int = 0
    """Regular files among them."""
    logical_bytes: int = 0
    """Sum of the files' sizes, modulo 2^64."""
    blobs: int = 0
    """Blobs that an inode refers to."""
    blob_bytes: int = 0
    """Sum of those blobs' sizes, modulo 2^64."""
    chunks: int = 0
    """Chunk records, those that wait for the sweep included."""
    raw_bytes: int = 0
    """Sum of the chunks' raw lengths."""
    stored_bytes: int = 0
    """Sum of the chunks' stored lengths."""

    def add_logical(self, change: int) -> None:
        """The files' sizes have grown by so much, or shrunk."""
        self.logical_bytes = wrapped(self.logical_bytes + change)

    def add_blob(self, change: int) -> None:
        """The blobs' sizes have grown by so much, or shrunk."""
        self.blob_bytes = wrapped(self.blob_bytes + change)

    def encode(self, ahead: int = 0) -> bytes:
        """The record.

        Its next inode is so many *ahead*: whoever begins with it gives out no number of those
        that are given out until the next commit, and may be known by a file handle.
        """
        record = replace(self, next_ino=self.next_ino + ahead)
        return b"".join(_U64.pack(number) for number in astuple(record))

    @classmethod
    def decode(cls, value: bytes | None) -> Self:
        """The counters in a record; those of an empty store for None."""
        if value is None:
            return cls()
        if len(value) != _U64.size * len(fields(cls)):
            raise IndexDamagedError(f"the record of counters has {len(value)} bytes")
        return cls(*(number for (number,) in _U64.iter_unpack(value)))
