"""Room on the backing disk, and what may be done when there is none.

Owns the reserve file and the store's health.  Invariant: what was acknowledged can be stored,
because a write is refused while less than the margin would be left; and deleting works on a
full disk, because the reserve is given up for the commits that delete.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from cafs.clock import Clock
from cafs.durable import Disk
from cafs.errors import CafsError, DiskFullError, ReadOnlyError
from cafs.units import size_text

log = logging.getLogger(__name__)

REFRESH_S = 0.1
MARGIN_MAX = 32 << 20
"""Bytes that must stay free for a write to be let in: room for index and packs to catch up."""
FRACTION = 32
"""On a small disk reserve and margin are each at most one part in so many."""


class Space:
    """Free space of the disk under *store*.  Belongs to the event loop unless said."""

    def __init__(self, disk: Disk, store: Path, reserve: int, clock: Clock) -> None:
        self._disk = disk
        self._store = store
        self._clock = clock
        self._path = store / "reserve"
        self._asked = -1e9
        self._free = 0
        self.total = 0
        self.read_only = False
        self.problem: CafsError | None = None
        """Why changes are refused or could not be stored; None when all is well."""
        self._refresh()
        self._margin = min(MARGIN_MAX, self.total // FRACTION)
        self._reserve = min(reserve, self.total // FRACTION)
        self.restore_reserve()

    def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now - self._asked < REFRESH_S:
            return
        self._asked = now
        figures = os.statvfs(self._store)
        self._free = figures.f_bavail * figures.f_frsize
        self.total = figures.f_blocks * figures.f_frsize
        read_only = bool(figures.f_flag & os.ST_RDONLY)
        if read_only and not self.read_only:
            log.error(
                "the disk under %s is read-only: reading goes on, changes are refused; what to "
                "do: see dmesg, then remount it read-write; cafs then goes on by itself",
                self._store,
            )
        elif self.read_only and not read_only:
            log.info("the disk under %s can be written to again", self._store)
        self.read_only = read_only

    def free(self) -> int:
        """Bytes that files can still take."""
        self._refresh()
        return max(0, self._free - self._margin)

    def admit(self, needed: int) -> None:
        """Let a change in that needs so many bytes.  Raises DiskFullError or ReadOnlyError."""
        self.admit_removal()
        if self._free - self._margin < needed:
            self._full()
        elif self.problem is not None and isinstance(self.problem, DiskFullError):
            log.info("the disk under %s has room again", self._store)
            self.problem = None

    def admit_removal(self) -> None:
        """Let a change in that gives space back.  Raises ReadOnlyError."""
        self._refresh()
        if self.read_only:
            self.problem = ReadOnlyError(f"the disk under {self._store} is read-only")
            raise self.problem
        if isinstance(self.problem, ReadOnlyError):
            self.problem = None

    def _full(self) -> None:
        problem = DiskFullError(
            f"the disk under {self._store} is full: {size_text(self._free)} are left"
        )
        if not isinstance(self.problem, DiskFullError):
            log.error(
                "%s; what to do: delete files (that works now), or grow the disk; "
                "writing goes on by itself then",
                problem,
            )
        self.problem = problem
        raise problem

    def failed(self, error: CafsError) -> None:
        """Something could not be stored."""
        self.problem = error
        self._asked = -1e9

    def recovered(self) -> None:
        """A commit has succeeded."""
        if self.problem is not None:
            self._refresh()
            if not self.read_only and self._free >= self._margin:
                self.problem = None

    def release_reserve(self) -> bool:
        """Give the reserve up, so that commits can be made.  Any thread.  False: it was gone."""
        try:
            if os.stat(self._path).st_blocks == 0:
                return False
            os.truncate(self._path, 0)
        except OSError:
            return False
        return True

    def restore_reserve(self) -> None:
        """Take the reserve again if there is room for it and more."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            if os.fstat(fd).st_size >= self._reserve:
                return
            figures = os.fstatvfs(fd)
            if figures.f_bavail * figures.f_frsize > 2 * self._reserve + self._margin:
                os.posix_fallocate(fd, 0, self._reserve)
        except OSError:
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)
