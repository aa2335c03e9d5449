"""Listing directories over FUSE: translation only."""

from __future__ import annotations

import stat

import pyfuse3
from pyfuse3 import RequestContext

from cafs.errors import CafsError
from cafs.mount.damage import DamageReporter
from cafs.mount.known import Known
from cafs.mount.translate import entry, handler, unknown
from cafs.mount.xattr_handlers import XattrHandlers
from cafs.store import Store
from cafs.types import Ino

DOT, DOT_DOT = 1, 2


class DirectoryHandlers(XattrHandlers):
    """The requests about what a directory holds."""

    def __init__(self, store: Store, damage: DamageReporter, known: Known) -> None:
        super().__init__(store)
        self._known = known
        self._damage = damage
        self._contents = store.contents
        self._accessed = store.accesses.note

    @handler
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """A directory's handle is its inode number: a listing has no state of its own."""
        self._known.asked(inode)
        self._tree.inodes.get(Ino(inode))
        return inode

    @handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory from a cookie on, with attributes."""
        directory = Ino(fh)
        attr = self._contents.attr(directory)
        self._accessed(directory)
        reply = pyfuse3.readdir_reply
        if start_id < DOT and not reply(token, b".", entry(directory, attr), DOT):
            return
        if start_id < DOT_DOT:
            parent = Ino(attr.aux)
            try:
                above = entry(parent, self._contents.attr(parent))
            except CafsError as error:
                # The damage of another directory is no reason not to list this one.
                self._damage.notice("readdir", parent, error)
                above = unknown(parent, stat.S_IFDIR >> 12)
            if not reply(token, b"..", above, DOT_DOT):
                return
        get, told = self._contents.attr, self._known.told
        for found in self._tree.listing(directory, max(start_id, DOT_DOT)):
            try:
                attributes = entry(found.ino, get(found.ino))
            except CafsError as error:
                # One bad record must not take the whole directory with it: the name is
                # listed, and looking at it says what is wrong.
                self._damage.notice("readdir", found.ino, error)
                attributes = unknown(found.ino, found.type)
            if not reply(token, found.name, attributes, found.cookie):
                return
            told(found.ino, attributes.st_mode)

    @handler
    async def releasedir(self, fh: int) -> None:
        """Nothing was held."""

    @handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """All that is in the tree is on disk when this returns."""
        await self._store.commit()
