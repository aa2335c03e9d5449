"""A file of the cache: a blob's rebuilt bytes, and what proves each block of them.

Owns the layout, which docs/format.md states: content, a table with the XXH3-64 of each block,
a footer.  Knows nothing of which files there are.  Invariant: bytes leave :func:`read` only when
their blocks, the table and the footer match, and the footer names this store and this content.
"""

from __future__ import annotations

import struct
from array import array
from typing import Final, NamedTuple

import xxhash

from cafs.durable import Disk
from cafs.errors import ChunkDamagedError

MAGIC: Final = b"CAFSCACH"
VERSION: Final = 1
BLOCK: Final = 128 << 10
"""Bytes that are verified together; the last block of a content is shorter."""

_FOOTER: Final = struct.Struct("<8sII16s16sQQ")
FOOTER_SIZE: Final = _FOOTER.size
_CHECKED: Final = FOOTER_SIZE - 8
"""Bytes of the footer that its own check covers, behind the table."""
SUM: Final = "Q"
"""The table's entries as an array: u64, little-endian as all numbers in files."""


class Identity(NamedTuple):
    """Whose bytes a file must hold to be believed."""

    store_id: bytes
    sha256: bytes
    """Of the blob: its number alone would not do after an index was rebuilt from a copy."""
    size: int
    """Bytes of the blob, above 0."""


def blocks_of(size: int) -> int:
    """How many blocks *size* bytes have."""
    return -(-size // BLOCK)


def file_size(size: int) -> int:
    """Bytes of the file for a blob of *size* bytes."""
    return size + 8 * blocks_of(size) + FOOTER_SIZE


def ending(identity: Identity, sums: array[int]) -> bytes:
    """What follows the content: table and footer."""
    table = sums.tobytes()
    fields = (MAGIC, VERSION, BLOCK, identity.store_id, identity.sha256[:16], identity.size)
    head = _FOOTER.pack(*fields, 0)[:_CHECKED]
    return table + head + xxhash.xxh3_64_digest(table + head)[::-1]


def read_table(disk: Disk, fd: int, identity: Identity) -> array[int]:
    """The table of an open file.  Raises ChunkDamagedError unless all of its ending is right."""
    size = identity.size
    length = file_size(size) - size
    found = disk.pread_exact(fd, length, size)
    sums = array(SUM, found[:-FOOTER_SIZE])
    if found != ending(identity, sums):
        raise ChunkDamagedError("a cached file is not that of its blob, or its ending is damaged")
    return sums


def check(block: bytes | memoryview, expected: int) -> None:
    """Raise ChunkDamagedError unless a block has its checksum."""
    if xxhash.xxh3_64_intdigest(block) != expected:
        raise ChunkDamagedError("a block of a cached file does not match its checksum")


def read(disk: Disk, fd: int, identity: Identity, start: int, end: int) -> memoryview:
    """Bytes [start, end) of the content, which has them.

    Raises ChunkDamagedError for anything that does not match, DiskError.
    """
    sums = read_table(disk, fd, identity)
    first, last = start // BLOCK, blocks_of(end)
    low = first * BLOCK
    data = memoryview(disk.pread_exact(fd, min(last * BLOCK, identity.size) - low, low))
    for block in range(first, last):
        at = block * BLOCK - low
        check(data[at : at + BLOCK], sums[block])
    return data[start - low : end - low]
