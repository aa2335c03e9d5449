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

DIRECTORIES_MAX: Final = 250_000
"""Directories that are kept count of, at about 75 bytes each."""
_ASKED: Final = 1
_ONCE: Final = 2


class Known:
    """Which directories the kernel has asked about and not forgotten since.

    The kernel counts how often it was told of an inode, and tells that number when it forgets it;
    what it was told since then is not part of it.  So a directory is forgotten when both sides
    have come to the same count, whatever overtook what on the way.  An answer that did not reach
    the kernel leaves a directory known, which only costs time.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        # To each directory the times that the kernel was told of it, doubled, and _ASKED.
        self._directories: dict[int, int] = {}
        self._uncounted = 0
        """Times that it was told of directories when there were too many to count."""
        self._unclear = False
        """It may know what it was not told of."""

    def told(self, ino: int, mode: int) -> None:
        """The kernel is given an inode as the answer to a name.  To be called first."""
        if not stat.S_ISDIR(mode):
            return
        if ino in self._directories or len(self._directories) < DIRECTORIES_MAX:
            self._directories[ino] = self._directories.get(ino, 0) + _ONCE
        else:
            self._uncounted += 1

    def asked(self, directory: int, name: bytes = b"") -> None:
        """The kernel asks for a name in a directory, or for all.  To be called first."""
        if name in (b".", b".."):
            # From a file handle: how it came to know the directory is not known.
            self._unclear = True
        told = self._directories.get(directory)
        # The root, and any other that it was not told of, is known all the same.
        if told is not None or len(self._directories) < DIRECTORIES_MAX:
            self._directories[directory] = (told or 0) | _ASKED
        elif not self._uncounted:
            self._unclear = True

    def forgotten(self, ino: int, times: int) -> None:
        """The kernel has forgotten an inode that it was told of so many times."""
        told = self._directories.get(ino)
        if told is not None:
            left = told - times * _ONCE
            if left >= _ONCE:
                self._directories[ino] = left
                return
            del self._directories[ino]
            times -= told // _ONCE
        if self._uncounted and self._is_directory(Ino(ino)):
            self._uncounted -= min(times, self._uncounted)

    def has(self, directory: int) -> bool:
        """Whether the kernel was told of a directory and will forget it; false if that is not
        known for sure."""
        return self._directories.get(directory, 0) >= _ONCE

    def _is_directory(self, ino: Ino) -> bool:
        try:
            attr = self._tree.inodes.find(ino)
        except CafsError:
            return False
        return attr is not None and stat.S_ISDIR(attr.mode)

    @property
    def _everything(self) -> bool:
        return self._unclear or self._uncounted > 0

    def _is_asked(self, directory: int) -> bool:
        return bool(self._directories.get(directory, 0) & _ASKED)

    def may_show(self, change: Change) -> bool:
        """Whether the kernel could still show the state before a change."""
        if self._everything:
            return True
        if isinstance(change, EntryChanged):
            return self._is_asked(change.parent)
        return self._may_have(change.ino)

    def _may_have(self, ino: Ino) -> bool:
        if ino == ROOT or self._is_asked(ino):
            return True
        try:
            attr = self._tree.inodes.find(ino)
        except CafsError:
            return True
        # Where the names of a file lie is not recorded, and a removed directory is no more
        # where it was known.
        if attr is None or not stat.S_ISDIR(attr.mode) or attr.nlink == 0:
            return True
        return self._is_asked(attr.aux)
