"""The figures that must cost O(1) at any size, and the next free numbers.

Kept as plain integers while the store is open and written with each commit, so that they
always agree with the records of the same transaction.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, fields
from typing import Self

from cafs.errors import IndexDamagedError

KEY = b"counters"
_U64 = struct.Struct("<Q")


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
    """Sum of the files' sizes."""
    blobs: int = 0
    """Blobs that an inode refers to."""
    blob_bytes: int = 0
    """Sum of those blobs' sizes."""
    chunks: int = 0
    """Chunk records, those that wait for the sweep included."""
    raw_bytes: int = 0
    """Sum of the chunks' raw lengths."""
    stored_bytes: int = 0
    """Sum of the chunks' stored lengths."""

    def encode(self) -> bytes:
        """The record."""
        return b"".join(_U64.pack(number) for number in astuple(self))

    @classmethod
    def decode(cls, value: bytes | None) -> Self:
        """The counters in a record; those of an empty store for None."""
        if value is None:
            return cls()
        if len(value) != _U64.size * len(fields(cls)):
            raise IndexDamagedError(f"the record of counters has {len(value)} bytes")
        return cls(*(number for (number,) in _U64.iter_unpack(value)))
