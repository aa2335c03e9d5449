"""What other processes have sent: the reads file.

Owns a small file in shared memory into which nginx's workers write the number of each inode whose
content they send; docs/format.md, "Reads file", states bytes and protocol.  Invariant: nothing
here is believed beyond "somebody may have read this": a number that is wrong, torn or lost costs
an access time, and no content depends on it.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple, Self

from cafs.errors import CafsError, from_os_error
from cafs.types import Ino

log = logging.getLogger(__name__)

MAGIC: Final = b"CAFSREAD"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sIIQ40x")
BITS: Final = 16
"""There are two to the power of this many places: over a second of all that a machine can send."""
BITS_MIN: Final = 4
BITS_MAX: Final = 24
SUFFIX: Final = ".reads"
"""Behind the pending file's name."""
_HEAD: Final = 2
_FIRST: Final = HEADER.size // 8
_INO_BITS: Final = 48
PACKS: Final = 0
"""Above the inode's number: the bytes came from packs."""
CACHED: Final = 1
"""From a file of the cache, from its first byte on."""
CACHED_INSIDE: Final = 2
"""From a file of the cache, from another byte on."""


def path_beside(pending: Path) -> Path:
    """Where the reads file of a store is whose pending file is there."""
    return pending.with_name(pending.name + SUFFIX)


class Sent(NamedTuple):
    """What was sent in some time."""

    inos: set[Ino]
    """Whose content; all of them."""
    cached: dict[Ino, int]
    """Of these, whose from a file of the cache, and how often from its first byte on."""


class Reads:
    """The reads file of the store that this process has the lock of."""

    def __init__(self, path: Path, like: Path, bits: int = BITS) -> None:
        """Make a new file at *path*, with owner, group and permissions of the file *like*.

        Raises DiskFullError and its kin.
        """
        self.path = path
        self.lost = 0
        """Reads that were overwritten before they were drained."""
        size = HEADER.size + (8 << bits)
        temporary = path.with_name(f"{path.name}.new")
        try:
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # Now, and not by a signal in a worker that finds no memory.
                os.posix_fallocate(fd, 0, size)
                self._map = mmap.mmap(fd, size)
                HEADER.pack_into(self._map, 0, MAGIC, VERSION, bits, 0)
                model = os.stat(like)
                if os.geteuid() == 0:
                    os.fchown(fd, model.st_uid, model.st_gid)
                os.fchmod(fd, model.st_mode & 0o666)
            finally:
                os.close(fd)
            temporary.rename(path)
        except OSError as error:
            raise from_os_error(error, f"make {path}") from error
        self._words = memoryview(self._map).cast("Q")
        self._places = 1 << bits
        self._drained = 0

    @classmethod
    def publish(cls, path: Path, like: Path) -> Self | None:
        """A new file, or None if there cannot be one: then reads by nginx leave no trace."""
        try:
            return cls(path, like)
        except CafsError as error:
            log.warning("%s; what nginx reads leaves access times as they are", error)
            return None

    def drain(self) -> Sent:
        """What was read since the last time."""
        head = self._words[_HEAD]
        # Whoever may write the file may write anything: then begin where it says.
        new = (head - self._drained) % (1 << 64)
        if not new:
            return Sent(set(), {})
        self.lost += max(0, new - self._places)
        new = min(new, self._places)
        self._drained = head
        found: Counter[int] = Counter()
        start = (head - new) % self._places
        while new:
            count = min(new, self._places - start)
            piece = self._words[_FIRST + start : _FIRST + start + count]
            found.update(piece)
            # A place that was taken and is not written yet must not count for who had it before.
            piece[:] = memoryview(bytes(8 * count)).cast("Q")
            start, new = 0, new - count
        sent = Sent(set(), {})
        for word, times in found.items():
            ino, way = Ino(word % (1 << _INO_BITS)), word >> _INO_BITS
            if not ino or way > CACHED_INSIDE:
                continue
            sent.inos.add(ino)
            if way != PACKS:
                sent.cached[ino] = sent.cached.get(ino, 0) + (times if way == CACHED else 0)
        return sent

    def close(self) -> None:
        """Nobody drains any more."""
        self._words.release()
        self._map.close()
        withdraw(self.path)


def withdraw(path: Path) -> None:
    """Take away what a daemon has left at *path*; that it stays behind does no harm."""
    try:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.new").unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s stays behind, which does no harm: %s", path, error)
