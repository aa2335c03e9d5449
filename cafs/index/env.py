"""The LMDB environment, for reading.

Owns the one handle that this process may have on the index (LMDB forbids a second: closing
it would drop the process's locks).  Writing is the writer process's business; nothing here
ever begins a write transaction.  Every value is held to its check before anybody sees it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import lmdb

from cafs._index import unseal
from cafs.errors import IndexDamagedError, StoreError
from cafs.index import layout, pages

MAP_SIZE = 1 << 40
"""Upper bound of the index in bytes: address space only, the file grows as it is used."""
MAX_READERS = 512


class Environment:
    """The index opened read-only, with all its databases."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.open()

    def open(self) -> None:
        """Map the index; again after close(), when another file has taken its place."""
        directory = self.directory
        try:
            self._env = lmdb.open(
                str(directory),
                map_size=MAP_SIZE,
                readonly=True,
                create=False,
                max_dbs=len(layout.DATABASES) + 1,
                max_readers=MAX_READERS,
                # The first reads of a cold index are random: reading ahead costs far more.
                readahead=False,
                max_spare_txns=8,
            )
            self.databases = [self._env.open_db(name, create=False) for name in layout.DATABASES]
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.NotFoundError) as error:
            raise IndexDamagedError(f"{directory}: {error}", advice=pages.ADVICE) from error
        except lmdb.VersionMismatchError as error:
            raise IndexDamagedError(f"{directory}: another LMDB version wrote it") from error
        except lmdb.ReadersFullError as error:
            raise StoreError(f"{directory}: all {MAX_READERS} reader slots are taken") from error
        except lmdb.Error as error:
            file = directory / pages.FILE
            if not file.exists() or not file.stat().st_size:
                raise IndexDamagedError(f"{file} is lost", advice=pages.ADVICE) from error
            raise StoreError(f"{directory}: {error}") from error

    def begin(self) -> lmdb.Transaction[bytes]:
        """A read transaction on the newest commit."""
        return self._env.begin()

    def get(self, txn: lmdb.Transaction[bytes], database: int, key: bytes) -> bytes | None:
        """The value of a key, checked, or None.  Raises IndexDamagedError."""
        try:
            value = txn.get(key, db=self.databases[database])
        except lmdb.Error as error:
            raise damaged(database, error) from error
        return None if value is None else checked(database, key, value)

    def clear_dead_readers(self) -> int:
        """Free the reader slots of processes that died; returns how many."""
        return self._env.reader_check()

    def used_bytes(self) -> int:
        """Bytes of the index that are in use (the file may be longer: pages to be reused)."""
        with self._env.begin() as txn:
            total = 0
            for database in (None, *self.databases):
                stat = txn.stat(database) if database is not None else self._env.stat()
                pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
                total += pages * stat["psize"]
            return total

    def file_bytes(self) -> int:
        """Bytes that the index takes on disk."""
        return (self.directory / "data.mdb").stat().st_blocks * 512

    def rest(self) -> None:
        """Let go of the pages of the file that were looked at; the page cache still has them.

        Else they count as this process's memory until the kernel is short of it.  madvise(2)
        takes nothing from a mapping of a file but the page tables, so anybody may read on.
        """
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        file = os.fsencode(self.directory.resolve() / "data.mdb")
        for line in Path("/proc/self/maps").read_bytes().splitlines():
            place, *_, name = line.split(maxsplit=5)
            if name == file:
                start, end = (int(address, 16) for address in place.split(b"-"))
                madvise(start, end - start, mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap the index; all transactions must have ended."""
        self._env.close()


def checked(database: int, key: bytes, sealed: bytes) -> bytes:
    """A value as it lies in the index, without its check.  Raises IndexDamagedError."""
    value = unseal(database, key, sealed)
    if value is None:
        raise bad_value(database, key)
    return value


def bad_value(database: int, key: bytes) -> IndexDamagedError:
    """What to raise for a value whose check is wrong."""
    return IndexDamagedError(
        f"index database {layout.DATABASES[database].decode()}: the value of key "
        f"{layout.shown_key(database, key)} is not what was written"
    )


def damaged(database: int, error: lmdb.Error) -> IndexDamagedError:
    """What LMDB found wrong, with the database's name."""
    return IndexDamagedError(f"index database {layout.DATABASES[database].decode()}: {error}")
