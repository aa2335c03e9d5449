"""How large a file may become: what ext4 with blocks of 4 KiB allows.

Invariant: no file grows beyond :data:`SIZE_MAX`.  One that is larger already, from a store of an
older cafs, can be read and made smaller.
"""

from __future__ import annotations

import errno

from cafs.errors import FsError

SIZE_MAX = (1 << 44) - 4096
"""Bytes.  Spools lie on the backing disk at the offsets of the file, and can go no further."""


def check_size(size: int, now: int) -> None:
    """Raise FsError(EFBIG) if a file of *now* bytes may not be set to *size*."""
    if size > max(SIZE_MAX, now):
        raise FsError(errno.EFBIG, f"a file cannot have {size} bytes")


def check_end(end: int) -> None:
    """Raise FsError(EFBIG) if nothing may be written up to *end*."""
    if end > SIZE_MAX:
        raise FsError(errno.EFBIG, f"nothing can be written up to byte {end} of a file")


def room_at(offset: int) -> int:
    """How many bytes may be written at *offset*: a write gets in what it can, and is short.

    Raises FsError(EFBIG) if there are none.
    """
    check_end(offset + 1)
    return SIZE_MAX - offset
