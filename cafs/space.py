"""Room on the backing disk, and what may be done when there is none.

Owns the reserve file and the store's health.  Invariant: what was acknowledged can be stored,
because a write is refused while less than the margin would be left; and deleting works on a
full disk, because the reserve is given up for the commits that delete.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from cafs.clock import Clock
from cafs.durable import Disk
from cafs.errors import CafsError, DiskFullError, ReadOnlyError
from cafs.lock import NAME as LOCK_NAME
from cafs.units import size_text

log = logging.getLogger(__name__)

REFRESH_S = 0.1
PROBE_S = 1.0
"""How often it is tried whether the disk still takes changes, at most."""
MARGIN_MAX = 32 << 20
"""Bytes that must stay free for a write to be let in: room for index and packs to catch up."""
NEAR = 64 << 20
"""Bytes: with less than this left the disk is asked at each write."""
SCARCE_MAX = 4 << 30
SCARCE_FRACTION = 16
"""Room is scarce below one part in so many of the disk, or so many bytes if that is less."""
FRACTION = 32
"""On a small disk reserve and margin are each at most one part in so many."""


class Space:
    """Free space of the disk under *store*.  Belongs to the event loop unless said."""

    def __init__(self, disk: Disk, store: Path, reserve: int, clock: Clock) -> None:
        self._disk = disk
        self._store = store
        self._clock = clock
        self._path = store / "reserve"
        self._asked = self._probed = -1e9
        self._free = 0
        self._probe_says = False
        self.total = 0
        self.read_only = False
        self.problem: CafsError | None = None
        """Why changes are refused or could not be stored; None when all is well."""
        self.commit_bytes: Callable[[], int] = lambda: 0
        """Bytes of the index that the changes which wait for a commit may take."""
        self.give_way: Callable[[int | None], int] = lambda _needed: 0
        """Removes what can be made again from a full disk; how many bytes that gives back.  If a
        number of bytes is given: so many, or none where there are not so many."""
        self._refresh()
        self._margin = min(MARGIN_MAX, self.total // FRACTION)
        self._reserve = min(reserve, self.total // FRACTION)
        self.restore_reserve()

    def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now - self._asked < REFRESH_S:
            return
        self._asked = now
        try:
            figures = os.statvfs(self._store)
        except OSError as error:
            # The figures of a moment ago will do; a disk this ill makes itself heard elsewhere.
            log.warning("the disk under %s does not tell its free space: %s", self._store, error)
            return
        self._free = figures.f_bavail * figures.f_frsize
        self.total = figures.f_blocks * figures.f_frsize
        if self.read_only or now - self._probed >= PROBE_S:
            self._probed = now
            self._probe_says = self._refuses_changes()
        read_only = bool(figures.f_flag & os.ST_RDONLY) or self._probe_says
        if read_only and not self.read_only:
            log.error(
                "the disk under %s is read-only: reading goes on, changes are refused; what to "
                "do: see dmesg, then remount it read-write; cafs then goes on by itself",
                self._store,
            )
        elif self.read_only and not read_only:
            log.info("the disk under %s can be written to again", self._store)
        self.read_only = read_only

    def _refuses_changes(self) -> bool:
        """Try a change.  After an error ext4 refuses all of them while statvfs(3) shows nothing."""
        try:
            os.utime(self._store / LOCK_NAME)
        except OSError as error:
            return error.errno == errno.EROFS
        return False

    def free(self) -> int:
        """Bytes that files can still take."""
        self._refresh()
        return max(0, self._free - self._margin)

    def find_room(self, needed: int) -> bool:
        """Whether so many bytes are free, if need be without what can be made again."""
        missing = needed - self.free()
        if missing > 0 and self.give_way(missing):
            self.changed()
        return self.free() >= needed

    def changed(self) -> None:
        """Space was given back: the figures of a moment ago will not do."""
        self._asked = -1e9

    @property
    def scarce(self) -> bool:
        """Whether what is dead should be given back, before somebody who writes is refused."""
        enough = min(SCARCE_MAX, self.total // SCARCE_FRACTION)
        return isinstance(self.problem, DiskFullError) or self.free() < enough

    def room_to_move(self) -> int:
        """Bytes that compaction may take for the time until it gives more back."""
        self._refresh()
        return max(0, self._free - self._margin // 4)

    def look(self) -> None:
        """See whether what was wrong is over, though nobody tries to write."""
        self._refresh()
        if self.read_only:
            self.problem = self._is_read_only()
        elif isinstance(self.problem, ReadOnlyError):
            self.problem = None
        self._see_room()
        if self.problem is None:
            self.restore_reserve()

    def _see_room(self) -> None:
        # Twice the margin: at its very edge each file would end the trouble and begin it anew.
        if isinstance(self.problem, DiskFullError) and self._free >= 2 * self._margin:
            log.info("the disk under %s has room again", self._store)
            self.problem = None

    def _is_read_only(self) -> ReadOnlyError:
        return ReadOnlyError(f"the disk under {self._store} is read-only")

    def admit(self, needed: int) -> None:
        """Let a change in that needs so many bytes.  Raises DiskFullError or ReadOnlyError."""
        if self._free - self._margin - needed < NEAR:
            # What was written since the figures were taken may be all that is left.
            self._asked = -1e9
        self.admit_removal()
        if self._free - self._margin < needed + self.commit_bytes():
            if self.give_way(None):
                self.changed()
                self._refresh()
            if self._free - self._margin < needed + self.commit_bytes():
                self._full()
        self._see_room()

    def admit_removal(self) -> None:
        """Let a change in that gives space back.  Raises ReadOnlyError."""
        self._refresh()
        if self.read_only:
            self.problem = self._is_read_only()
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
        """Something could not be stored.  Any thread."""
        self.problem = error
        self._asked = self._probed = -1e9

    def recovered(self) -> None:
        """A commit has succeeded."""
        if self.problem is not None:
            self._asked = -1e9
            self._refresh()
            if isinstance(self.problem, DiskFullError):
                self._see_room()
            elif not self.read_only:
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
            if os.stat(self._path).st_size >= self._reserve:
                return
        except OSError:
            pass  # Not there yet, or not to be asked now: the next line finds out.
        self._refresh()
        if self._free <= 2 * self._reserve + self._margin:
            return
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.posix_fallocate(fd, 0, self._reserve)
        except OSError:
            # Half a reserve is none: what there is belongs to the files.
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)
        self._asked = -1e9
