"""Looking thousands of names up at once, for those who ask about existence and sizes only.

The same answers as one look-up after the other, at a fraction of the cost: one call for all of
them, no attributes built, nothing taken into the cache.  Damage hides what it lies in, and
nothing else.  Belongs to the event loop.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from typing import TypeVar

from cafs.errors import CafsError, IndexDamagedError
from cafs.index.overlay import Overlay
from cafs.tree.tree import Tree
from cafs.types import Ino

_REGULAR = stat.S_IFREG >> 12
_DIRECTORY = stat.S_IFDIR >> 12
_OTHER_NAME = -1
_DIRECTORIES_MAX = 1024

T = TypeVar("T")


class Names:
    """What names lead to, in one store."""

    def __init__(self, tree: Tree, overlay: Overlay) -> None:
        self._tree = tree
        self._overlay = overlay

    def files(self, parents: Sequence[Ino], names: Sequence[bytes]) -> list[Ino]:
        """The regular file that each name leads to in the directory beside it; 0 for none."""
        return self._of_type(_REGULAR, parents, names)

    def directories(self, parents: Sequence[Ino], names: Sequence[bytes]) -> list[Ino]:
        """As files(), for directories."""
        return self._of_type(_DIRECTORY, parents, names)

    def _of_type(self, kind: int, parents: Sequence[Ino], names: Sequence[bytes]) -> list[Ino]:
        try:
            found = self._overlay.entries_at(parents, names)
        except IndexDamagedError:
            # A bad page: one by one, so that it only hides what lies in it.
            one = self._overlay.entries_at
            found = [
                _or(0, lambda place=place: one([parents[place]], [names[place]])[0])  # type: ignore[misc]
                for place in range(len(names))
            ]
        if _OTHER_NAME in found:
            for place, answer in enumerate(found):
                if answer == _OTHER_NAME:
                    found[place] = self._collided(parents[place], names[place])
        return [
            Ino(answer >> 4) if answer & 15 == kind and answer > 0 else Ino(0) for answer in found
        ]

    def _collided(self, parent: Ino, name: bytes) -> int:
        """A name whose own place another one has: what the slow way says."""

        def slow() -> int:
            ino = self._tree.lookup(parent, name)
            return 0 if ino is None else ino << 4 | self._tree.inodes.get(ino).mode >> 12

        return _or(0, slow)

    def sizes(self, inos: Sequence[Ino]) -> list[int]:
        """Sizes of inodes as their records have them; below 0 for one without a sound record."""
        try:
            return self._overlay.sizes_of(inos)
        except IndexDamagedError:
            one = self._overlay.sizes_of
            return [_or(-1, lambda ino=ino: one([ino])[0]) for ino in inos]  # type: ignore[misc]


def _or(otherwise: T, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except CafsError:
        return otherwise


class Subdirectories:
    """The subdirectories of some directories, remembered for as long as those do not change.

    Any change of a directory's entries changes its ctime, so a directory's record tells whether
    what is remembered of it still holds.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._known: dict[Ino, tuple[int, int, dict[bytes, Ino]]] = {}

    def of(self, directory: Ino) -> dict[bytes, Ino]:
        """What is known of a directory's subdirectories; the caller adds what it finds."""
        attr = self._tree.inodes.get(directory)
        known = self._known.get(directory)
        if known is None or known[:2] != (attr.ctime_ns, attr.blob):
            if len(self._known) > _DIRECTORIES_MAX:
                self._known.clear()
            known = self._known[directory] = (attr.ctime_ns, attr.blob, {})
        return known[2]
