"""Who was read, and when: access times by the rule of the mount, and what ageing goes by.

Owns the rule (relatime, as Linux has it) and a bounded memory of the last reads, which is finer
than the rule: an access time may be a day behind.  Belongs to the event loop.  Invariant: however
a file is read (through the mount, from the daemon or from nginx), the same is noted.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import trio

from cafs.clock import Clock
from cafs.contents import Contents
from cafs.errors import CafsError
from cafs.index.reads import Reads
from cafs.notices import InodeChanged, Notices
from cafs.space import Space
from cafs.types import Ino

log = logging.getLogger(__name__)

DAY_NS: Final = 86400 * 10**9
DRAIN_S: Final = 1.0
SEEN_MAX: Final = 100_000
SLICE: Final = 64
"""Inodes that are noted before others have their turn."""


class Accesses:
    """The reads of one store."""

    def __init__(
        self, contents: Contents, space: Space, clock: Clock, notices: Notices, *, relatime: bool
    ) -> None:
        self._contents = contents
        self._space = space
        self._clock = clock
        self._notices = notices
        self._relatime = relatime
        self._seen: OrderedDict[Ino, int] = OrderedDict()
        self._untold: list[InodeChanged] = []
        self.drained = 0
        """Inodes that other processes have told of so far."""
        self.sent_cached: Callable[[Ino, int], None] = lambda _ino, _starts: None
        """Called for a file that other processes have sent from the cache of rebuilt content, with
        how often they did so from its first byte on."""

    def note(self, ino: Ino) -> bool:
        """A file is read, a link followed, or a directory listed; whether its record changed.

        relatime: the access time changes if it is older than another change or than a day.
        """
        now = self._clock.now_ns()
        self._seen[ino] = now
        self._seen.move_to_end(ino)
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        if not self._relatime or self._space.read_only:
            return False
        attr = self._contents.attr(ino)
        if attr.mtime_ns < attr.atime_ns > attr.ctime_ns and now - attr.atime_ns < DAY_NS:
            return False
        inodes = self._contents.tree.inodes
        inodes.put(ino, inodes.get(ino)._replace(atime_ns=now))
        return True

    def last_seen(self, ino: Ino) -> int:
        """When a file was last read, in ns since 1970; 0 if that is not in memory any more."""
        return self._seen.get(ino, 0)

    def note_beside(self, inos: Iterable[Ino]) -> None:
        """The same for what was read beside the mount, whose kernel hears of it within a second."""
        for ino in inos:
            try:
                if self._contents.tree.inodes.find(ino) is not None and self.note(ino):
                    self._untold.append(InodeChanged(ino))
            except CafsError as error:
                # What is wrong with it is said to whoever asks for it.
                log.debug("a read of inode %d is not noted: %s", ino, error)

    async def drain(self, reads: Reads | None) -> None:
        """Take over what other processes have noted since the last time, and tell the kernel."""
        if reads is not None:
            sent = reads.drain()
            inos = list(sent.inos)
            self.drained += len(inos)
            for start in range(0, len(inos), SLICE):
                self.note_beside(inos[start : start + SLICE])
                await trio.lowlevel.checkpoint()
            for ino, starts in sent.cached.items():
                self.sent_cached(ino, starts)
        if self._untold:
            untold, self._untold = self._untold, []
            await self._notices.tell(untold)

    async def run(self, reads: Reads | None) -> None:
        """Drain each second, for ever."""
        while True:
            await trio.sleep(DRAIN_S)
            await self.drain(reads)
