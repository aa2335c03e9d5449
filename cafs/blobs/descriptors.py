"""Open descriptors of packs for reading, at most so many.

Owns when a pack is opened and closed for reading.  Invariant: a descriptor is never closed
while a thread reads through it: its number would at once be that of another file.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from cafs.durable import Disk
from cafs.errors import DiskError
from cafs.types import PackNo

DESCRIPTORS_MAX: Final = 128


class Descriptor:
    """A descriptor that is lent out.  (No context manager: that would cost more than the read.)"""

    __slots__ = ("fd", "retired", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.retired = False


class Descriptors:
    """Descriptors by pack number, the least recently used closed first.  Thread-safe.

    The lock is held for a few dictionary operations, never for a system call.
    """

    def __init__(
        self, disk: Disk, path_of: Callable[[PackNo], str], limit: int = DESCRIPTORS_MAX
    ) -> None:
        self._disk = disk
        self._path_of = path_of
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[PackNo, Descriptor] = OrderedDict()

    def borrow(self, pack: PackNo) -> Descriptor:
        """The pack's descriptor, open until it is given back.

        Raises NotFoundError when there is no such pack.
        """
        entry = self.borrow_if_open(pack)
        if entry is None:
            entry = self._add(pack, Descriptor(self._open_for_reading(self._path_of(pack))))
        return entry

    def borrow_if_open(self, pack: PackNo) -> Descriptor | None:
        """As borrow(), but None instead of opening the pack: opening may wait for the disk."""
        with self._lock:
            entry = self._open.get(pack)
            if entry is not None:
                entry.users += 1
                self._open.move_to_end(pack)
            return entry

    def _add(self, pack: PackNo, fresh: Descriptor) -> Descriptor:
        evicted = []
        with self._lock:
            entry = self._open.setdefault(pack, fresh)
            entry.users += 1
            if entry is not fresh:
                # Another thread was faster.
                evicted.append(fresh)
            elif len(self._open) > self._limit:
                evicted.append(self._open.popitem(last=False)[1])
            closing = self._retire(evicted)
        self._close(closing)
        return entry

    def give_back(self, entry: Descriptor) -> None:
        """End a borrow(): exactly once for each."""
        with self._lock:
            entry.users -= 1
            unused = entry.retired and not entry.users
        if unused:
            self._disk.close(entry.fd)

    def forget(self, pack: PackNo) -> None:
        """Close the pack's descriptor, as soon as nobody reads through it."""
        with self._lock:
            entry = self._open.pop(pack, None)
            closing = self._retire([entry] if entry else [])
        self._close(closing)

    def close(self) -> None:
        """Close them all, each as soon as nobody reads through it."""
        with self._lock:
            closing = self._retire(list(self._open.values()))
            self._open.clear()
        self._close(closing)

    @staticmethod
    def _retire(entries: list[Descriptor]) -> list[Descriptor]:
        """Mark for closing; those that nobody uses are returned.  Called with the lock."""
        for entry in entries:
            entry.retired = True
        return [entry for entry in entries if not entry.users]

    def _close(self, entries: list[Descriptor]) -> None:
        for entry in entries:
            self._disk.close(entry.fd)

    def _open_for_reading(self, path: str) -> int:
        try:
            fd = self._disk.open(path, os.O_RDONLY | os.O_NOATIME)
        except DiskError as error:
            # open(2): O_NOATIME is for the owner; another user may still look inside.
            if not isinstance(error.__cause__, PermissionError):
                raise
            fd = self._disk.open(path, os.O_RDONLY)
        # The kernel then reads further ahead by itself, and into large folios.  What it is asked
        # for with POSIX_FADV_WILLNEED comes page by page: more work, and slower to copy from.
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return fd
