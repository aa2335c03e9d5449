"""Extended attributes and ACLs over FUSE: translation only.

Invariant: no handler here has a checkpoint before it has read or set an attribute.  pyfuse3 asks
for one and then sets it when a program wants it to be new, or replaced, and nothing may come
between the two.
"""

from __future__ import annotations

import errno
import stat

import pyfuse3
from pyfuse3 import FUSEError, RequestContext

from cafs.errors import CafsError, FsError
from cafs.mount.translate import handler
from cafs.store import Store
from cafs.tree import permissions
from cafs.tree.permissions import ACCESS, DEFAULT
from cafs.types import Ino

XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")


class XattrHandlers(pyfuse3.Operations):
    """The requests about extended attributes."""

    enable_acl = True

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._tree = store.tree

    @handler
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """The value of an extended attribute."""
        value = self._tree.xattrs.get(Ino(inode), name)
        if value is None:
            raise FUSEError(_missing(name))
        return value

    @handler
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        """The names of the extended attributes; trusted ones for root only."""
        return [
            name
            for name in self._tree.xattrs.names(Ino(inode))
            if ctx.uid == 0 or not name.startswith(b"trusted.")
        ]

    @handler
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Set an extended attribute, or an ACL, which may be all in the mode."""
        ino, store = Ino(inode), self._store
        store.space.admit(0)
        problem = store.committer.error
        if problem is not None and store.overlay.pending > store.overlay_limit:
            raise problem
        if name in (ACCESS, DEFAULT):
            self._set_acl(ino, name, value, ctx)
        elif name in XATTR_NAMESPACES:
            raise FsError(errno.EINVAL)
        elif name.startswith(XATTR_NAMESPACES):
            self._tree.xattrs.put(ino, name, value)
        else:
            raise FsError(errno.EOPNOTSUPP)
        self._changed(ino)
        try:
            await store.make_room()
        except CafsError:
            # It is set; the next one hears of it.
            pass

    def _set_acl(self, ino: Ino, name: bytes, value: bytes, ctx: RequestContext) -> None:
        entries = permissions.parse_acl(value)
        attr = self._tree.inodes.get(ino)
        if name == DEFAULT and not stat.S_ISDIR(attr.mode):
            raise FsError(errno.EACCES)
        plain = False
        if name == ACCESS:
            mode, plain = permissions.mode_of_acl(entries, attr.mode)
            if mode & stat.S_ISGID and not in_group(attr.gid, ctx):
                # The kernel's word for it (FUSE_SETXATTR_ACL_KILL_SGID) reaches no handler.
                mode &= ~stat.S_ISGID
            attr = attr._replace(mode=mode)
        if plain or not entries:
            self._tree.xattrs.remove(ino, name)
        else:
            # May be refused, and then the mode stays as it is, too.
            self._tree.xattrs.put(ino, name, value)
        self._tree.inodes.put(ino, attr)

    @handler
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        self._store.space.admit_removal()
        # Between the two of a pair there is no moment in which this could end.
        await self._store.make_room()
        if not self._tree.xattrs.remove(Ino(inode), name):
            raise FUSEError(_missing(name))
        self._changed(Ino(inode))

    def _changed(self, ino: Ino) -> None:
        attr = self._tree.inodes.get(ino)
        self._tree.inodes.put(ino, attr._replace(ctime_ns=self._store.clock.now_ns()))


def _missing(name: bytes) -> int:
    """Why there is no such attribute: it is not set, or there can be none of that name."""
    known = name in (ACCESS, DEFAULT) or name.startswith(XATTR_NAMESPACES)
    return errno.ENODATA if known else errno.EOPNOTSUPP


def in_group(gid: int, ctx: RequestContext) -> bool:
    """Whether the caller may use the group's rights, as root always may."""
    if ctx.uid == 0 or gid == ctx.gid:
        return True
    try:
        return gid in pyfuse3.get_sup_groups(ctx.pid)
    except OSError:
        # It has ended, or lives in a pid namespace that is not seen from here.
        return False
