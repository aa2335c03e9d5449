"""The cache of rebuilt content: which blobs have a file in ``STORE/cache``, and which goes first.

Owns the directory.  Invariants: the files that count never take more than the limit; a file
under its own name is whole.  Nothing depends on any of them: each may be deleted at any time,
by anybody, and costs the time to rebuild it.  So nothing here is synced, and a fault of the disk
means only that there is no file.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from cafs.archives import cachefile
from cafs.archives.cachefile import Identity
from cafs.durable import Disk
from cafs.errors import CafsError, NotFoundError
from cafs.types import BlobNo

log = logging.getLogger(__name__)

DIRECTORY: Final = "cache"
_NEW: Final = ".new"
SPARE: Final = 128 << 20
"""Bytes that stay free on the disk: what is stored is worth more than what can be rebuilt."""


class NewFile:
    """A file that is not whole yet.  Its name is its own: two may be made for one blob."""

    def __init__(self, blob: BlobNo, fd: int, path: Path, need: int) -> None:
        self.blob = blob
        self.fd = fd
        self.path = path
        self.need = need
        """Bytes that it will have."""
        self.written = 0
        """Bytes that it has, as far as its writer has told."""
        self.unwanted = False
        """Whether its room is needed for something else: its writer is to give it up."""


class Cache:
    """Files of rebuilt content, the least recently used removed first.  Thread-safe; blocks."""

    def __init__(self, disk: Disk, store: Path, store_id: bytes, limit: int) -> None:
        """*limit* in bytes; 0 for no files at all."""
        self._disk = disk
        self.directory = store / DIRECTORY
        self._store_id = store_id
        self._limit = limit
        self._lock = threading.Lock()
        self._files: OrderedDict[BlobNo, int] = OrderedDict()
        self._used = 0
        self._growing = 0
        """Bytes promised to files that are not whole yet ..."""
        self._new: set[NewFile] = set()
        """... which are these."""
        self._begun = 0
        self.hits = 0
        """Reads that were answered from a file."""
        self.damaged = 0
        """Files that were found not to be what was written."""

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return self._used

    @property
    def count(self) -> int:
        """How many blobs have a file."""
        return len(self._files)

    def open(self) -> None:
        """Find what an earlier run has left; without a directory there will be no files."""
        found = []
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            for entry in os.scandir(self.directory):
                number = _number(entry.name)
                if number is not None:
                    status = entry.stat()
                    used = max(status.st_atime_ns, status.st_mtime_ns)
                    found.append((used, number, status.st_size))
                elif not entry.is_dir():
                    # Half a file, of a run that was killed.
                    os.unlink(entry.path)
        except OSError as error:
            log.info("%s: %s; it is used as far as it goes", self.directory, error.strerror)
        for _, number, size in sorted(found):
            self._files[number] = size
            self._used += size
        self.make_room(0)

    def identity(self, sha256: bytes, size: int) -> Identity:
        """What a file of this content must say of itself."""
        return Identity(self._store_id, sha256, size)

    def has(self, blob: BlobNo) -> bool:
        """Whether there is a file, as far as is known."""
        return blob in self._files

    def use(self, blob: BlobNo) -> None:
        """Another process has read from the file of a blob."""
        with self._lock:
            if blob in self._files:
                self._files.move_to_end(blob)
                self.hits += 1

    def read(self, blob: BlobNo, identity: Identity, start: int, end: int) -> memoryview | None:
        """Bytes [start, end) of a blob, verified; None when there is no file that has them.

        A file with a single wrong byte in what was read is removed.
        """
        with self._lock:
            if blob not in self._files:
                return None
            self._files.move_to_end(blob)
        try:
            fd = self._disk.open(self._path(blob), os.O_RDONLY)
        except CafsError as error:
            self._mistrust(blob, error)
            return None
        try:
            data = cachefile.read(self._disk, fd, identity, start, end)
            self.hits += 1
            return data
        except CafsError as error:
            self._mistrust(blob, error)
            return None
        finally:
            self._disk.close(fd)

    def _mistrust(self, blob: BlobNo, error: CafsError) -> None:
        if not isinstance(error, NotFoundError):
            self.damaged += 1
            log.warning("%s: %s; it is made anew", self._path(blob), error)
        self.drop(blob)

    def begin(self, blob: BlobNo, size: int) -> NewFile | None:
        """A new file for a blob of *size* bytes; None where it has no room.

        It is the caller's until :meth:`finish` has taken it, or :meth:`give_up`.
        """
        need = cachefile.file_size(size)
        self._look_again()
        with self._lock:
            # Only what is whole can make room.
            if self._growing + need > self._limit:
                return None
            self._growing += need
            self._begun += 1
            path = self.directory / f"{blob:012x}.{self._begun}{_NEW}"
        self.make_room(0)
        try:
            free = self._disk.free_bytes(self.directory)
            with self._lock:
                # What the others were promised, this one among them, is not all written yet.
                free -= self._growing - sum(new.written for new in self._new)
            if free >= SPARE:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
                new = NewFile(blob, self._disk.open(path, flags, 0o600), path, need)
                with self._lock:
                    self._new.add(new)
                return new
        except CafsError as error:
            log.debug("%s", error)
        with self._lock:
            self._growing -= need
        return None

    def _look_again(self) -> None:
        """Forget files that somebody has removed; the directory comes back if it was one."""
        with self._lock:
            known = list(self._files)
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            there = set(os.listdir(self.directory))
        except OSError as error:
            log.debug("%s: %s", self.directory, error.strerror)
            return
        for blob in known:
            if self._path(blob).name not in there:
                with self._lock:
                    # It may have been made anew since then.
                    if blob in self._files and not os.path.lexists(self._path(blob)):
                        self._used -= self._files.pop(blob)

    def finish(self, new: NewFile) -> bool:
        """The file is whole: from now on it is found, and closed.

        False if that cannot be, because the disk fails or somebody has removed it, or its room
        is needed: then it is the caller's as before, who may read from it until giving it up.
        """
        if new.unwanted:
            return False
        try:
            self._disk.rename(new.path, self._path(new.blob))
        except CafsError as error:
            log.info("%s", error)
            return False
        with self._lock:
            # What is counted stays the same, so this is within the limit as it was.
            self._growing -= new.need
            self._new.discard(new)
            self._used += new.need - self._files.pop(new.blob, 0)
            self._files[new.blob] = new.need
        self._close(new)
        return True

    def give_up(self, new: NewFile) -> None:
        """The file will not be found: it goes, and is closed."""
        self._close(new)
        self._remove(new.path)
        with self._lock:
            self._growing -= new.need
            self._new.discard(new)

    def _close(self, new: NewFile) -> None:
        try:
            self._disk.close(new.fd)
        except CafsError as error:
            # What it may not have taken is found out when it is read.
            log.debug("%s", error)

    def drop(self, blob: BlobNo) -> int:
        """Remove a blob's file if there is one; how many bytes that gives back."""
        with self._lock:
            size = self._files.pop(blob, None)
            if size is None:
                return 0
            self._used -= size
        self._remove(self._path(blob))
        return size

    def make_room(self, most: int | None = None) -> int:
        """Remove files, the least recently used first; how many bytes that gives back.

        At least *most* bytes if there are so many, and in any case what is above the limit.
        None: everything; who makes a file that is not whole yet gives it up with its next bytes.
        """
        given = 0
        if most is None:
            with self._lock:
                for new in self._new:
                    new.unwanted = True
        while True:
            with self._lock:
                over = self._used + self._growing > self._limit
                if not self._files or not (over or most is None or given < most):
                    return given
                oldest = next(iter(self._files))
            given += self.drop(oldest)

    def _remove(self, path: Path) -> None:
        try:
            self._disk.unlink(path)
        except CafsError as error:
            log.debug("%s", error)

    def _path(self, blob: BlobNo) -> Path:
        return self.directory / f"{blob:012x}"


def _number(name: str) -> BlobNo | None:
    if len(name) != 12:
        return None
    try:
        return BlobNo(int(name, 16))
    except ValueError:
        return None
