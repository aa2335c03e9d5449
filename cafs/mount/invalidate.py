"""Telling the mount's kernel what has changed behind its back.

An invalidation waits for locks that a request to us may hold, so it is made in a thread while
the event loop goes on answering.  Invariant: when :func:`invalidate` returns, the kernel asks
for what has changed, and does not answer from memory.
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

    async def tell(self, changes: Sequence[Change]) -> None:
        """A listener for cafs.notices; not cancelled half-way."""
        changes = [change for change in changes if self._known.may_show(change)]
        if not changes:
            return
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._tell, changes, limiter=self._crowd)

    def _tell(self, changes: Sequence[Change]) -> None:
        for change in changes:
            try:
                if isinstance(change, EntryChanged):
                    pyfuse3.invalidate_entry(change.parent, change.name)
                else:
                    pyfuse3.invalidate_inode(change.ino, attr_only=not change.content)
            except OSError as error:
                if error.errno not in UNKNOWN_TO_KERNEL:
                    text = f"the mount may show an old state of {change}: {error}"
                    self._limit.log(log, logging.ERROR, "invalidate", text)
