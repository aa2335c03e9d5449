"""Inodes without a name: when they go.

An inode that has lost its last name stays as long as somebody has it open or the kernel knows
it; one that a daemon left behind goes at the next start; what lay in a removed directory goes
when the sweep comes by.  Belongs to the event loop.  Invariant: what is taken out has no name
and nobody reads or writes it.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable

from cafs.clock import Clock
from cafs.contents import Contents
from cafs.errors import CafsError
from cafs.tree.detached import Swept, is_detached
from cafs.tree.tree import Tree
from cafs.types import Ino

log = logging.getLogger(__name__)


class Nameless:
    """Takes out the inodes of one store that have no name."""

    def __init__(self, tree: Tree, contents: Contents, clock: Clock) -> None:
        self._tree = tree
        self._contents = contents
        self._clock = clock
        self._waiting: set[Ino] = set()
        # Forgotten while somebody had them open.
        self.is_directory_in_use: Callable[[Ino], bool] = lambda _: False
        """Whether somebody may be in a directory, or have it open, and will forget it later."""

    def forget(self, ino: Ino) -> None:
        """The kernel knows this inode no more: if it has no name either, it goes.

        No record is read of one that has a name.  Damage keeps the inode, and is in the log.
        """
        if ino not in self._tree.inodes.nameless:
            return
        try:
            self._forget(ino)
        except CafsError as error:
            _stays(ino, error)

    def _forget(self, ino: Ino) -> None:
        attr = self._tree.inodes.find(ino)
        if attr is None or attr.nlink:
            return
        if stat.S_ISDIR(attr.mode) and self.is_directory_in_use(ino):
            return
        if not self._contents.is_open(ino) and self._contents.discard(ino):
            self._tree.reap(ino)
        else:
            self._waiting.add(ino)

    def look_again(self) -> None:
        """Those that could not go yet, now perhaps."""
        waiting, self._waiting = self._waiting, set()
        for ino in waiting:
            self.forget(ino)

    def reap_orphans(self) -> int:
        """Remove what had no name when the store was closed or killed; how many.

        Directories with entries are left to the sweep: that may take long.
        """
        orphans = list(self._tree.inodes.orphans())
        for ino in orphans:
            try:
                attr = self._tree.inodes.find(ino)
                if attr is not None and is_detached(attr):
                    self._tree.detached.add(ino)
                else:
                    self._tree.reap(ino)
            except CafsError as error:
                _stays(ino, error)
        return len(orphans)

    def sweep_detached(self, limit: int) -> Swept:
        """Take at most *limit* entries out of removed directories."""
        swept = self._tree.detached.sweep(limit, self._clock.now_ns())
        for ino in swept.gone:
            self.forget(ino)
        return swept


def _stays(ino: Ino, error: CafsError) -> None:
    log.error("inode %d without a name stays, because of damage: %s", ino, error)
