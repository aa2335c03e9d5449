"""The nouns of the whole program: numbers that must not be confused, and small values.

Everything here is immutable: values are taken in and given out, so that nothing is edited
while somebody else still looks at it.
"""

from __future__ import annotations

from typing import NamedTuple, NewType

Ino = NewType("Ino", int)
"""Inode number, also the FUSE node id; 1 is the root; never reused."""
BlobNo = NewType("BlobNo", int)
"""Number of a blob's record; 0 means none; never reused."""
ChunkNo = NewType("ChunkNo", int)
"""Number of a chunk's record; 0 means none; never reused."""
PackNo = NewType("PackNo", int)
"""Number of a pack file; never reused."""
Generation = NewType("Generation", int)
"""Grows by one with each commit."""
Handle = NewType("Handle", int)
"""File handle of the mount; lives as long as the open file."""

ROOT = Ino(1)
NO_BLOB = BlobNo(0)

TIME_MAX_NS = (1 << 63) - 1
"""The last time that a record can hold, in 2262; as on ext4 what is beyond becomes the bound."""


DAMAGED = 0x80
"""A bit of Extent.codec."""


class Extent(NamedTuple):
    """Where a chunk lies and how it was stored."""

    pack: PackNo
    offset: int
    """Bytes from the start of the pack file."""
    stored_length: int
    """Bytes in the pack."""
    codec: int
    """One of cafs.blobs.codec: how the stored bytes become the raw ones."""
    raw_length: int
    """Bytes of the chunk itself."""
    xxh3: int
    """XXH3-64 of the stored bytes."""

    @property
    def damaged(self) -> bool:
        """Whether the stored bytes are known not to be what was written."""
        return bool(self.codec & DAMAGED)

    def as_damaged(self) -> Extent:
        """The extent with that mark.  What has it is never read, and never shared anew."""
        return self._replace(codec=self.codec | DAMAGED)

    def as_sound(self) -> Extent:
        """The extent without that mark."""
        return self._replace(codec=self.codec & ~DAMAGED)


class Attr(NamedTuple):
    """An inode's record, as committed or about to be."""

    mode: int
    """st_mode, file type included."""
    uid: int
    gid: int
    nlink: int
    size: int
    """Bytes; for a symbolic link the target's length; for a directory 4096."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    blob: BlobNo
    """A regular file's content; NO_BLOB while it has none.  Directory: how many entries."""
    aux: int
    """Directory: the parent's inode number.  Device node: st_rdev.  Regular file: bytes of it
    that are holes.  Otherwise 0."""
    flags: int
    """See cafs.index.layout: INODE_*."""


class DirEntry(NamedTuple):
    """One name in a directory."""

    name: bytes
    ino: Ino
    type: int
    """d_type of readdir(3): mode >> 12."""
    cookie: int
    """Where a listing goes on after this entry; 63 bits, above 2."""
