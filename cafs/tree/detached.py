"""Directories that were taken out of the tree with all that is below them, and what becomes of it.

Taking one out is one step, however much it holds: its name goes, and it is an orphan that still
has entries.  No path leads there any more.  The entries go later, some at a time; a
subdirectory that is met becomes an orphan of the same kind.  Invariant: between any two steps
the index is right by itself (links, counts, orphans), so a restart only has to begin again with
the orphans that have entries.
"""

from __future__ import annotations

import logging
import stat
from itertools import islice
from typing import NamedTuple

from cafs.errors import CafsError
from cafs.tree.inodes import Inodes
from cafs.tree.names import Names
from cafs.types import ROOT, Attr, BlobNo, DirEntry, Ino

log = logging.getLogger(__name__)


class Swept(NamedTuple):
    """What a step of the sweep did."""

    entries: int
    """Entries that went."""
    gone: list[Ino]
    """Inodes that have no name any more: orphans, the caller's to reap when nobody has them."""
    changed: list[Ino]
    """Inodes that have a name less, and others left elsewhere."""


class Detached:
    """The directories whose entries are still to go.  Belongs to the event loop."""

    def __init__(self, inodes: Inodes, names: Names) -> None:
        self._inodes = inodes
        self._names = names
        # Directories to empty and the cookie of the last entry that went.  The last one is
        # worked on: what is met below comes first, so the stack stays as small as the tree is
        # deep.
        self._left: list[tuple[Ino, int]] = []

    def __bool__(self) -> bool:
        return bool(self._left)

    def __len__(self) -> int:
        return len(self._left)

    def add(self, ino: Ino) -> None:
        """This directory has no name and is to lose its entries."""
        self._left.append((ino, 0))

    def holds(self, ino: Ino) -> bool:
        """Whether a directory lies in one that was taken out, or is one itself."""
        while ino != ROOT:
            attr = self._inodes.find(ino)
            if attr is None or attr.nlink == 0:
                return True
            ino = Ino(attr.aux)
        return False

    def sweep(self, limit: int, now_ns: int) -> Swept:
        """Take at most *limit* entries out."""
        swept = Swept(0, [], [])
        while self._left and swept.entries < limit:
            ino, after = self._left.pop()
            try:
                count = self._some(ino, after, limit - swept.entries, now_ns, swept)
                swept = swept._replace(entries=swept.entries + count)
            except CafsError as error:
                # It stays an orphan: the next start tries again, after a repair perhaps.
                log.error("removed directory %d cannot be emptied: %s", ino, error)
        return swept

    def _some(self, ino: Ino, after: int, limit: int, now_ns: int, swept: Swept) -> int:
        directory = self._inodes.find(ino)
        if directory is None:
            # Its last entry went in the step before, and then whoever still had it let go.
            return 0
        entries = list(islice(self._names.listing(ino, after), limit))
        left = max(0, directory.blob - len(entries))
        if len(entries) < limit:
            # Nothing is added to a directory without a name, so that was the last of it.
            left = 0
        else:
            self._left.append((ino, entries[-1].cookie))
        for entry in entries:
            self._names.remove(ino, entry.cookie)
            self._drop(entry, now_ns, swept)
        self._inodes.put(ino, directory._replace(blob=BlobNo(left), ctime_ns=now_ns))
        if len(entries) < limit:
            swept.gone.append(ino)
        return len(entries)

    def _drop(self, entry: DirEntry, now_ns: int, swept: Swept) -> None:
        attr = self._inodes.find(entry.ino)
        if attr is None:
            # A damaged record: the name goes all the same.
            return
        if not stat.S_ISDIR(attr.mode):
            last = self._inodes.drop_link(entry.ino, attr, now_ns)
            (swept.gone if last else swept.changed).append(entry.ino)
            return
        self.orphan(entry.ino, attr, now_ns)
        if attr.blob:
            self.add(entry.ino)
        else:
            swept.gone.append(entry.ino)

    def orphan(self, ino: Ino, attr: Attr, now_ns: int) -> None:
        """A directory has lost its name: it is its own way up no more, but the root is."""
        self._inodes.put(ino, attr._replace(nlink=0, aux=ROOT, ctime_ns=now_ns))
        self._inodes.add_orphan(ino)


def is_detached(attr: Attr) -> bool:
    """Whether an orphan's record says that it is a directory with entries to be taken out."""
    return stat.S_ISDIR(attr.mode) and attr.nlink == 0 and attr.blob > 0
