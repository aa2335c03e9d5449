"""What other processes must not answer from the index: the pending file.

Owns a small file in shared memory in which every record that has changed since the newest commit
is marked, by one bit of a hash; docs/format.md, "Pending file", states bytes and protocol.  Two
tables: one takes the marks of what is gathered, the other has those of what is on its way to
disk.  Invariant: a mark is set before its change can be seen by anybody, and goes only when the
commit that holds the change can be.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from pathlib import Path
from typing import Final, Self

from cafs._index import clear, retire
from cafs.errors import CafsError, from_os_error
from cafs.index import reads

log = logging.getLogger(__name__)

MAGIC: Final = b"CAFSPEND"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sIIQQQ24x")
BITS: Final = 20
"""A table has two to the power of this many bits."""
BITS_MIN: Final = 10
BITS_MAX: Final = 30
_DIRECTORY: Final = Path("/dev/shm")


def default_path(store_id: bytes) -> Path:
    """Where the pending file of a store is unless told otherwise.

    In memory and not in the store: a disk that turns read-only would keep marks from being set.
    """
    return _DIRECTORY / f"cafs-{store_id.hex()}.pending"


class Pending:
    """The pending file of the store that this process has the lock of.

    Marks are set with :func:`cafs._index.mark` on *buffer* and *table*.
    """

    def __init__(self, path: Path, bits: int = BITS) -> None:
        """Publish a new file at *path*; one that is there is retired.

        Raises DiskFullError and its kin.  Then nothing that was there is believed any more, or
        it could not be taken away: see withdraw().
        """
        self.path = path
        self.table = 0
        """The table that takes marks now."""
        size = HEADER.size + 2 * (1 << bits) // 8
        temporary = _temporary(path)
        try:
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                # Now, and not by a signal at the first mark that finds no memory.
                os.posix_fallocate(fd, 0, size)
                self.buffer = mmap.mmap(fd, size)
            finally:
                os.close(fd)
            HEADER.pack_into(self.buffer, 0, MAGIC, VERSION, bits, 0, os.getpid(), 1)
            _retire(path)
            temporary.rename(path)
        except OSError as error:
            raise from_os_error(error, f"make {path}") from error

    @classmethod
    def publish(cls, path: Path) -> Self | None:
        """A new file, or None if there cannot be one: then others ask the daemon for everything.

        Raises DiskError and its kin if an old one cannot be taken away either.
        """
        try:
            return cls(path)
        except CafsError as error:
            withdraw(path)
            log.warning("%s; other processes hand all requests to the daemon", error)
            return None

    def swap(self) -> None:
        """What is marked so far is on its way to disk; from now on the other table is used."""
        self.table ^= 1

    def committed(self) -> None:
        """What was on its way is committed, and whoever reads the index anew sees it."""
        clear(self.buffer, self.table ^ 1)

    def close(self) -> None:
        """Nobody marks any more: what is committed is all there is."""
        retire(self.buffer)
        self.buffer.close()
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s stays behind, which does no harm: %s", self.path, error)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def withdraw(path: Path) -> None:
    """Take away what a daemon that died left at *path*.

    Raises DiskError and its kin if that cannot be: somebody would believe it.
    """
    try:
        _retire(path)
        path.unlink(missing_ok=True)
        _temporary(path).unlink(missing_ok=True)
        reads.withdraw(reads.path_beside(path))
    except OSError as error:
        raise from_os_error(error, f"take {path} away") from error


def _retire(path: Path) -> None:
    """Tell those who have an old file mapped to look for another."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        with mmap.mmap(fd, 0) as old:
            retire(old)
    except ValueError:
        # Empty, or no pending file: nobody has believed it.
        pass
    finally:
        os.close(fd)
