"""What the mount's kernel may have in memory, as far as that is cheap to know.

To tell the kernel of a change takes a thread and two wake-ups; most blobs that come over HTTP
lie in directories that nobody has looked into through the mount.  Belongs to the event loop.
Invariant: a name that the kernel knows, or knows to be absent, lies in a directory that it has
asked about; what is not known for sure counts as known.
"""

from __future__ import annotations

import stat
from typing import Final

from cafs.errors import CafsError
from cafs.notices import Change, EntryChanged
from cafs.tree.tree import Tree
from cafs.types import ROOT, Ino

DIRECTORIES_MAX: Final = 50_000
"""With more of them everything counts as known."""


class Known:
    """Which directories the kernel has asked about.

    They are not taken out when it forgets them: what it asks at that moment could overtake
    that.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._directories: set[int] = set()
        self._everything = False

    def asked(self, directory: int, name: bytes = b"") -> None:
        """The kernel asks for a name in a directory, or for all.  To be called first."""
        if name in (b".", b".."):
            # From a file handle: how it came to know the directory is not known.
            self._everything = True
        if not self._everything:
            self._directories.add(directory)
            if len(self._directories) > DIRECTORIES_MAX:
                self._everything = True
                self._directories.clear()

    def may_show(self, change: Change) -> bool:
        """Whether the kernel could still show the state before a change."""
        if self._everything:
            return True
        if isinstance(change, EntryChanged):
            return change.parent in self._directories
        return self._may_have(change.ino)

    def _may_have(self, ino: Ino) -> bool:
        if ino == ROOT or ino in self._directories:
            return True
        try:
            attr = self._tree.inodes.find(ino)
        except CafsError:
            return True
        # Where the names of a file lie is not recorded, and a removed directory is no more
        # where it was known.
        if attr is None or not stat.S_ISDIR(attr.mode) or attr.nlink == 0:
            return True
        return attr.aux in self._directories
