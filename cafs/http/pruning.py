"""Removing the directories that deletes have emptied, after a while.

Clients make partition directories by the thousand and never remove one.  A directory goes when
a DELETE has emptied it and nothing has changed in it for some seconds since: a client that has
just made it, or is about to put something into it, does not lose it.  Kept are the root, the
directories in it, and whatever is neither a partition directory (a name of two characters) nor
below one: others are made once, by hand or by a job's start script.
Invariant: only a directory without entries is ever removed, in the step that looks.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Sequence
from typing import Final

import trio

from cafs.errors import CafsError
from cafs.notices import EntryChanged, InodeChanged
from cafs.store import Store
from cafs.types import ROOT, Ino

log = logging.getLogger(__name__)

QUIET_S: Final = 10.0
"""How long nothing must have changed in a directory before it is removed."""
WAITING_MAX: Final = 100_000
"""Directories that may wait; more are left standing."""
PARTITION_LENGTH: Final = 2

Names = tuple[bytes, ...]


def may_go(names: Names) -> bool:
    """Whether the directory with this path may be removed at all."""
    return any(len(name) == PARTITION_LENGTH for name in names[1:])


class Pruner:
    """What is to be removed from one store's tree.  Belongs to the event loop."""

    def __init__(self, store: Store, quiet_s: float = QUIET_S) -> None:
        self._store = store
        self._quiet_s = quiet_s
        self._due: dict[Names, float] = {}
        self._noted = trio.Event()

    def note(self, directory: Names) -> None:
        """Something was removed from the directory with this path."""
        if may_go(directory) and len(self._due) < WAITING_MAX:
            # Behind all others, also if it waits already: they are due in their order.
            self._due.pop(directory, None)
            self._due[directory] = trio.current_time() + self._quiet_s
            self._noted.set()

    async def run(self) -> None:
        """Remove what is due, for ever."""
        while True:
            await self._noted.wait()
            if not self._due:
                self._noted = trio.Event()
                continue
            names, due = next(iter(self._due.items()))
            await trio.sleep_until(due)
            if self._due.get(names) == due:
                del self._due[names]
                await self._remove(names)

    async def _remove(self, names: Names) -> None:
        store, tree = self._store, self._store.tree
        try:
            store.space.admit_removal()
            way = self._way(names)
            if way is None:
                return
            parent, ino = way
            attr = tree.inodes.get(ino)
            if attr.blob:
                return
            if 0 <= store.clock.now_ns() - attr.mtime_ns < self._quiet_s * 10**9:
                self.note(names)
                return
            store.nameless.forget(tree.rmdir(parent, names[-1]))
            self.note(names[:-1])
            await store.notices.tell([EntryChanged(parent, names[-1]), InodeChanged(parent)])
        except CafsError as error:
            log.info("an emptied directory is left standing: %s", error)
        except Exception:
            log.exception("defect: an emptied directory is left standing")

    def _way(self, names: Sequence[bytes]) -> tuple[Ino, Ino] | None:
        """The directory with this path and the one that it is in; None if it is not there."""
        parent = ino = ROOT
        for name in names:
            parent = ino
            found = self._store.tree.lookup(parent, name)
            # A symbolic link on the way: what lies behind it has another path, too.
            if found is None or not stat.S_ISDIR(self._store.tree.inodes.get(found).mode):
                return None
            ino = found
        return parent, ino
