"""How much room stat(2) says that a file takes, and who hears when that changes by itself.

The kernel keeps what it was told until a file is written to or changed through the mount; but
what is stored of a file also changes when it is settled or gets its digests.  Belongs to the
event loop.  Invariant: a file of which something else was shown than what it takes now is told
of, soon.
"""

from __future__ import annotations

from typing import Final

import trio

from cafs.notices import Change, InodeChanged, Notices
from cafs.types import Attr, Ino

UNIT: Final = 512
_SEVERAL: Final = -1


def blocks(attr: Attr) -> int:
    """st_blocks of a regular file: what of it is no hole."""
    return max(0, -(-(attr.size - attr.aux) // UNIT))


class Blocks:
    """What was shown of the files that are being written."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._shown: dict[Ino, int] = {}
        self._changed: list[Change] = []
        self._wake = trio.Event()

    def show(self, ino: Ino, attr: Attr) -> None:
        """Somebody looks at a file that is being written."""
        number = blocks(attr)
        if self._shown.setdefault(ino, number) != number:
            self._shown[ino] = _SEVERAL

    def settle(self, ino: Ino, attr: Attr) -> None:
        """All that was written is stored, and these are its attributes."""
        if self._shown.pop(ino, None) not in (None, blocks(attr)):
            self.change(ino)

    def drop(self, ino: Ino) -> None:
        """The file goes."""
        self._shown.pop(ino, None)

    def change(self, ino: Ino) -> None:
        """A file takes more room, or less, than was shown of it."""
        self._changed.append(InodeChanged(ino))
        self._wake.set()

    async def run(self) -> None:
        """Tell of changes, for ever.

        Not in the request that made one: it may hold what telling of another has to wait for.
        """
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            changed, self._changed = self._changed, []
            await self._notices.tell(changed)
