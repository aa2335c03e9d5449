"""A disk that forgets what was not synced: by a power loss, or because a sync failed.

It stands on a real directory.  Model: the content of a file is durable as of its last successful
sync_data or sync_file, the names of a directory as of its last successful sync.  Kernels and
disks may keep more than that, but promise no more.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from cafs.errors import CafsError
from tests.fault.faulty import Fault, FaultyDisk


class VolatileDisk(FaultyDisk):
    """A FaultyDisk that also knows what is durable in one flat directory."""

    def __init__(self, directory: Path, faults: Iterable[Fault] = ()) -> None:
        """What is in *directory* now counts as durable."""
        super().__init__(faults)
        self._directory = directory
        # Numbers of our own: the filesystem uses inode numbers again.
        self._numbers = itertools.count()
        self._number_of: dict[int, int] = {}
        self._content: dict[int, bytes] = {}
        for path in directory.iterdir():
            self._content[self._identify(path)] = path.read_bytes()
        self._names = self._listing()

    def _identify(self, path: str | os.PathLike[str], fresh: bool = False) -> int:
        inode = os.stat(path).st_ino
        if fresh or inode not in self._number_of:
            self._number_of[inode] = next(self._numbers)
        return self._number_of[inode]

    def _listing(self) -> dict[str, int]:
        return {path.name: self._identify(path) for path in self._directory.iterdir()}

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> int:
        fresh = not os.path.exists(path)
        fd = super().open(path, flags, mode)
        if fresh:
            self._identify(path, fresh=True)
        return fd

    def sync_data(self, fd: int) -> None:
        self._sync(fd, super().sync_data)

    def sync_file(self, fd: int) -> None:
        self._sync(fd, super().sync_file)

    def _sync(self, fd: int, sync: object) -> None:
        path = self._name(fd)
        assert callable(sync)
        if os.path.isdir(path):
            listing = self._listing()
            sync(fd)
            self._names = listing
            return
        data = Path(path).read_bytes()
        number = self._identify(path)
        try:
            sync(fd)
        except CafsError:
            # The kernel counts the pages as clean and may read them anew: what was on the disk,
            # and zeros where nothing was.
            Path(path).write_bytes(self._content.get(number, b"").ljust(len(data), b"\0"))
            raise
        self._content[number] = data

    def power_loss(self) -> None:
        """The directory is what it would be after the power came back."""
        for path in self._directory.iterdir():
            path.unlink()
        for name, number in self._names.items():
            (self._directory / name).write_bytes(self._content.get(number, b""))
