"""Extended attributes.

Belongs to the event loop.  Limits are those of ext4 with 4 KiB blocks: what one inode has
must fit one block (xattr(7); Documentation/filesystems/ext4/attributes.rst in the kernel).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from cafs.errors import FsError
from cafs.index import layout
from cafs.index.overlay import Overlay
from cafs.types import Ino

BLOCK = 4096
_BLOCK_HEADER = 32
_BLOCK_END = 4
_ENTRY_HEADER = 16
NAME_MAX = 255
NONE_MAX = 100_000
"""Inodes that are known to have no attribute, at about 80 bytes each."""


class Xattrs:
    """Extended attributes over the overlay."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        # Each write(2) asks for security.capability: most inodes have no attribute at all.
        self._none: set[Ino] = set()

    def get(self, ino: Ino, name: bytes) -> bytes | None:
        """The value, or None."""
        if ino in self._none:
            return None
        value = self._overlay.get(layout.XATTRS, layout.xattr_key(ino, name))
        if value is None and not self.names(ino):
            self.is_new(ino)
        return value

    def names(self, ino: Ino) -> list[bytes]:
        """The names that an inode has."""
        prefix = layout.u48(ino)
        return [key[6:] for key, _ in self._overlay.scan(layout.XATTRS, prefix, prefix)]

    def put(self, ino: Ino, name: bytes, value: bytes) -> None:
        """Set a value.  Raises FsError ERANGE (name), ENOSPC (what does not fit a block)."""
        if len(name) > NAME_MAX:
            raise FsError(errno.ERANGE)
        prefix = layout.u48(ino)
        there = self._overlay.scan(layout.XATTRS, prefix, prefix)
        check_fit({key[6:]: other for key, other in there} | {name: value})
        self._overlay.put(layout.XATTRS, layout.xattr_key(ino, name), value)
        self._none.discard(ino)

    def remove(self, ino: Ino, name: bytes) -> bool:
        """Delete one; False when there is none."""
        if self.get(ino, name) is None:
            return False
        self._overlay.delete(layout.XATTRS, layout.xattr_key(ino, name))
        return True

    def clear(self, ino: Ino) -> None:
        """Delete all of an inode that goes."""
        if ino not in self._none:
            for name in self.names(ino):
                self._overlay.delete(layout.XATTRS, layout.xattr_key(ino, name))
        self._none.discard(ino)

    def is_new(self, ino: Ino) -> None:
        """The inode was just made, or looked at: it has none."""
        if len(self._none) >= NONE_MAX:
            self._none.clear()
        self._none.add(ino)

    @property
    def known_bare(self) -> int:
        """Inodes that are known to have none."""
        return len(self._none)

    def forget(self) -> None:
        """Let go of what is known without a look."""
        self._none.clear()


def check_fit(attributes: Mapping[bytes, bytes]) -> None:
    """Raise FsError(ENOSPC) unless one inode may have all of these."""
    used = sum(_space(name, value) for name, value in attributes.items())
    if _BLOCK_HEADER + _BLOCK_END + used > BLOCK:
        raise FsError(errno.ENOSPC)


def _space(name: bytes, value: bytes) -> int:
    """Bytes of an ext4 block that an attribute takes; the name's prefix is not stored."""
    short = name.split(b".", 1)[-1]
    return _ENTRY_HEADER + (len(short) + 3 & ~3) + (len(value) + 3 & ~3)
