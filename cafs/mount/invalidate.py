"""Telling the mount's kernel what has changed behind its back.

An invalidation waits for locks that a request to us may hold, so it is made in a thread while
the event loop goes on answering.  Invariant: when :func:`invalidate` returns, the kernel asks
for what has changed, and does not answer from memory; but when the mount is about to go, nothing
is told any more.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence

import pyfuse3
import trio

from cafs.log import RateLimit
from cafs.mount.known import Known
from cafs.notices import Change, EntryChanged

log = logging.getLogger(__name__)

THREADS_MAX = 8
UNKNOWN_TO_KERNEL = (errno.ENOENT, errno.ENOTCONN, errno.ENODEV, errno.EBADF)
"""It has no such thing in memory, or the mount is going."""


class Invalidator:
    """Makes changes known to the kernel of the one mount of this process."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._crowd = trio.CapacityLimiter(THREADS_MAX)
        self._limit = RateLimit()
        self.telling = 0
        """How many are being told of something."""
        self._at_rest = trio.lowlevel.ParkingLot()
        self._ended = False
        self._soon: list[Change] = []
        self._wake = trio.Event()

    async def tell(self, changes: Sequence[Change]) -> None:
        """A listener for cafs.notices; not cancelled half-way."""
        if self._ended:
            return
        changes = [change for change in changes if self._known.may_show(change)]
        if not changes:
            return
        self.telling += 1
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._tell, changes, limiter=self._crowd)
        finally:
            self.telling -= 1
            if not self.telling:
                self._at_rest.unpark_all()

    def tell_soon(self, changes: Sequence[Change]) -> None:
        """From within a request: it may hold what telling has to wait for."""
        self._soon += changes
        self._wake.set()

    async def run(self) -> None:
        """Tell what is to be told soon, for ever."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            changes, self._soon = self._soon, []
            await self.tell(changes)

    def end(self) -> None:
        """The mount goes: nothing is told from now on."""
        self._ended = True

    async def rest(self) -> None:
        """Return when nobody is being told; after end() that lasts."""
        while self.telling:
            await self._at_rest.park()

    def _tell(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if self._ended:
                return
            try:
                if isinstance(change, EntryChanged):
                    pyfuse3.invalidate_entry(change.parent, change.name)
                else:
                    pyfuse3.invalidate_inode(change.ino, attr_only=not change.content)
            except OSError as error:
                if error.errno not in UNKNOWN_TO_KERNEL:
                    text = f"the mount may show an old state of {change}: {error}"
                    self._limit.log(log, logging.ERROR, "invalidate", text)
