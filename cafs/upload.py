"""A blob that arrives from outside the mount: written where nobody sees it, then put in place.

It is a draft of an inode without a name.  What a crash, a full disk or a client that goes away
leaves of it is an orphan, which the store removes by itself.  Invariant: a name leads to the
whole content or to what was there before, at every moment and after every crash.
"""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cafs.store import Store
from cafs.types import Ino


class Upload:
    """One blob on its way in; see begin().  Belongs to the event loop."""

    def __init__(self, store: Store, ino: Ino) -> None:
        self._store = store
        self.ino = ino
        self.size = 0
        """Bytes so far."""

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Append; waits while too much waits to be stored.  Raises DiskFullError and its kin.

        *last* says that finish() comes next: then what is left is cut as the end at once.
        """
        await self._store.contents.write(self.ino, self.size, data, privileged=True, last=last)
        self.size += len(data)

    async def finish(self) -> None:
        """Everything is stored when this returns.  Raises DiskFullError and its kin."""
        await self._store.contents.settle(self.ino)
        await self._store.make_room()

    def place(self, parent: Ino, name: bytes, mtime_ns: int | None) -> Ino | None:
        """Give the finished blob its name, in one step also where something else has it.

        *mtime_ns* is its modification time, if not the time of the last write.  Returns the
        inode whose last name was taken, if any.  Raises FsError as Tree.place() does.
        """
        tree = self._store.tree
        self._store.contents.reveal(self.ino)
        gone = tree.place(self.ino, parent, name)
        if mtime_ns is not None:
            attr = tree.inodes.get(self.ino)
            tree.inodes.put(self.ino, attr._replace(mtime_ns=mtime_ns))
        return gone


@asynccontextmanager
async def begin(store: Store, mode: int, uid: int, gid: int) -> AsyncIterator[Upload]:
    """Begin an upload; without place() it leaves nothing.  Raises DiskFullError and its kin."""
    store.space.admit(0)
    await store.make_room()
    ino = store.tree.nameless(stat.S_IFREG | mode, uid, gid)
    store.contents.hide(ino)
    store.contents.opened(ino, writable=True)
    try:
        yield Upload(store, ino)
    finally:
        try:
            store.contents.closed(ino, writable=True)
        finally:
            # If it has no name it goes, now or when no job works on it any more.
            store.nameless.forget(ino)
