"""LMDB's two meta pages, one of which says where the newest commit begins.

The commits write them in turns, so that one is always whole.  LMDB refuses a file of which either
is not: then the other one has all that is needed.  Layout: MDB_page and MDB_meta in mdb.c of
LMDB 0.9.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

from cafs.errors import from_os_error

FILE: Final = "data.mdb"
PAGE: Final = 4096
"""Bytes of a page as the index is made; meta pages of any other size are left alone."""
_HEADER: Final = struct.Struct("<QHHHH")
_CONSTANTS: Final = struct.Struct("<II")
_TXN_AT: Final = _HEADER.size + 24 + 2 * 48 + 8
_END: Final = _TXN_AT + 8
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_META_PAGE: Final = 8


class Mended(NamedTuple):
    """What was done to a meta page."""

    page: int
    commit_lost: bool
    """Whether the newest commit may have been what only this page had."""

    def __str__(self) -> str:
        text = f"meta page {self.page} of the index was damaged"
        if self.commit_lost:
            text += "; if the last commit began there, the index is that of the one before"
        return text


class Page(NamedTuple):
    """The bytes of one of them, at least so many as LMDB gives a meaning to."""

    data: bytes

    @property
    def whole(self) -> bool:
        """Whether LMDB takes it for a meta page."""
        flags = _HEADER.unpack_from(self.data)[2]
        constants = _CONSTANTS.unpack_from(self.data, _HEADER.size)
        return bool(flags & _META_PAGE) and constants == (_MAGIC, _VERSION)

    @property
    def txn(self) -> int:
        """The number of the commit that it belongs to."""
        txn: int = struct.unpack_from("<Q", self.data, _TXN_AT)[0]
        return txn

    def with_constants(self, page: int) -> Page:
        """With all that is the same in every meta page put right."""
        head = _HEADER.pack(page, 0, _META_PAGE, 0, 0) + _CONSTANTS.pack(_MAGIC, _VERSION)
        return Page(head + self.data[len(head) :])


def mend(directory: Path, *, lose_commit: bool) -> Mended | None:
    """Make a meta page whole if the other one is; None if there was nothing to do, or no way.

    What LMDB looks at is the same in all of them; where only that is wrong, nothing is lost.
    Where more is, the page may have had the newest commit: only with *lose_commit* it is made
    again from the other one, and the index is that commit's.  The caller has the lock, and nobody
    has the index open.  Raises DiskError and its kin.
    """
    path = directory / FILE
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, f"open {path}") from error
    try:
        pages = [Page(os.pread(fd, PAGE, number * PAGE)) for number in (0, 1)]
        if any(len(page.data) < PAGE for page in pages):
            return None
        bad = [number for number, page in enumerate(pages) if not page.whole]
        if len(bad) != 1:
            return None
        number = bad[0]
        good = pages[1 - number]
        right = pages[number].with_constants(number)
        # Neighbours in time, and of the commits that are even and odd each has its page.
        lost = abs(right.txn - good.txn) != 1 or right.txn & 1 != number
        if lost:
            if not lose_commit:
                return None
            right = good.with_constants(number)
        os.pwrite(fd, right.data[:_END], number * PAGE)
        os.fsync(fd)
        return Mended(number, lost)
    except OSError as error:
        raise from_os_error(error, f"mend {path}") from error
    finally:
        os.close(fd)
