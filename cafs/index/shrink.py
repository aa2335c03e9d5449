"""Giving the index's free pages back to the disk, which LMDB never does by itself.

A compact copy is made beside the index and takes its place by rename(2).  The lock file stays:
it holds the number of the last transaction, by which every process that opens the index finds
the meta page; so the copy's meta pages are given that number, too.  Invariant: whoever opens
the index at any moment finds one that is whole and has every commit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from pathlib import Path

import lmdb

from cafs.index.pages import FILE

_NEW = "shrunk"
_TXN_AT = 16 + 24 + 2 * 48 + 8
"""In a meta page: page header, four fields of MDB_meta, two MDB_db, the last page."""


def clear(directory: Path) -> None:
    """Remove a copy that did not take the index's place.  Only for who has the store's lock."""
    shutil.rmtree(directory / _NEW, ignore_errors=True)


def prepare(env: lmdb.Environment) -> None:
    """Make the copy.  Raises lmdb.Error and OSError; what it leaves behind is taken over."""
    directory = Path(os.fsdecode(env.path()))
    temporary = directory / _NEW
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    try:
        env.copy(str(temporary), compact=True)
        _set_transaction(temporary / FILE, env.info()["last_txnid"])
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _set_transaction(file: Path, txn: int) -> None:
    """Let both meta pages speak of the copy, as of transactions *txn* - 1 and *txn*."""
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        size = struct.unpack_from("<I", os.pread(fd, 4096, 0), 16 + 24)[0]
        metas = [os.pread(fd, size, page * size) for page in (0, 1)]
        newest = max(metas, key=lambda meta: int(struct.unpack_from("<Q", meta, _TXN_AT)[0]))
        for number in (txn - 1, txn):
            page = bytearray(newest)
            struct.pack_into("<Q", page, 0, number & 1)
            struct.pack_into("<Q", page, _TXN_AT, number)
            os.pwrite(fd, page, (number & 1) * size)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(env: lmdb.Environment) -> None:
    """Put the copy in place.  The caller closes *env*, whose file has no name any more.

    A second time it does the rest of what a process did that died.
    """
    directory = Path(os.fsdecode(env.path()))
    temporary = directory / _NEW
    with contextlib.suppress(FileNotFoundError):
        os.rename(temporary / FILE, directory / FILE)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    shutil.rmtree(temporary, ignore_errors=True)
