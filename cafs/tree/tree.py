"""The namespace: what POSIX says of names, links, types and times, over the index.

Belongs to the event loop; no method has a checkpoint, so each is atomic: the overlay is never
snapshotted in the middle of one.  Knows content only as blob numbers.  Invariants: an inode's
link count is the number of its entries (a directory's: 2 and one for each subdirectory); a
directory's *blob* field counts its entries; an inode without links is listed as an orphan.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable

from cafs.blobs.blobs import Blobs
from cafs.clock import Clock
from cafs.errors import FsError
from cafs.index import layout
from cafs.index.counters import Counters
from cafs.index.overlay import Overlay
from cafs.tree import permissions
from cafs.tree.detached import Detached, is_detached
from cafs.tree.inodes import Inodes
from cafs.tree.names import Found, Names
from cafs.tree.xattrs import Xattrs, check_fit
from cafs.types import NO_BLOB, ROOT, Attr, BlobNo, DirEntry, Ino

NAME_MAX = 255
LINK_MAX = 65_000
"""Links of a file, as on ext4."""
SYMLINK_MAX = 4095
DIRECTORY_SIZE = 4096
CAPABILITY = b"security.capability"

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Tree:
    """Names, inodes and extended attributes of one store."""

    def __init__(self, overlay: Overlay, counters: Counters, blobs: Blobs, clock: Clock) -> None:
        self._overlay = overlay
        self._blobs = blobs
        self._clock = clock
        self.inodes = Inodes(overlay, counters)
        self.names = Names(overlay)
        self.xattrs = Xattrs(overlay)
        self.detached = Detached(self.inodes, self.names)

    # -- looking -----------------------------------------------------------------------------

    def lookup(self, parent: Ino, name: bytes) -> Ino | None:
        """The inode that a name leads to; understands the dot entries.  ENOTDIR, ENAMETOOLONG."""
        if name == b".":
            # Of any inode, not only of directories: that is how a file handle (NFS,
            # open_by_handle_at) is turned into an inode again.
            return parent if self.inodes.get(parent).nlink else None
        directory = self._directory(parent)
        if name == b"..":
            return Ino(directory.aux)
        found = self._find(parent, directory, name)
        return found.ino if found else None

    def listing(self, directory: Ino, after: int) -> Iterable[DirEntry]:
        """Entries behind a cookie."""
        return self.names.listing(directory, after)

    def forget(self) -> None:
        """Let go of records and listings that are kept decoded."""
        self.inodes.forget()
        self.names.forget()
        self.xattrs.forget()

    def readlink(self, ino: Ino) -> bytes:
        """A symbolic link's target."""
        target = self._overlay.get(layout.SYMLINKS, layout.u48(ino))
        if target is None:
            raise FsError(errno.EINVAL)
        return target

    def _directory(self, ino: Ino) -> Attr:
        attr = self.inodes.get(ino)
        if not stat.S_ISDIR(attr.mode):
            raise FsError(errno.ENOTDIR)
        return attr

    def _not_removed(self, ino: Ino, directory: Attr) -> None:
        """Raise FsError(ENOENT) if a directory has no name, or lies in one that has none."""
        if directory.nlink == 0 or (self.detached and self.detached.holds(ino)):
            raise FsError(errno.ENOENT)

    def _find(self, parent: Ino, directory: Attr, name: bytes) -> Found | None:
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        probed = bool(directory.flags & layout.INODE_PROBED)
        return self.names.find(parent, name, probed=probed)

    def _need(self, parent: Ino, directory: Attr, name: bytes) -> Found:
        found = self._find(parent, directory, name)
        if found is None:
            raise FsError(errno.ENOENT)
        return found

    # -- making ------------------------------------------------------------------------------

    def create(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Ino:
        """Make an inode of the type in *mode* under a new name.  EEXIST and the rest of POSIX."""
        directory = self._directory(parent)
        if self._find(parent, directory, name) is not None:
            raise FsError(errno.EEXIST)
        self._not_removed(parent, directory)
        if target is not None and len(target) > SYMLINK_MAX:
            raise FsError(errno.ENAMETOOLONG)
        is_directory = stat.S_ISDIR(mode)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if is_directory:
                mode |= stat.S_ISGID
        default = None if stat.S_ISLNK(mode) else self.xattrs.get(parent, permissions.DEFAULT)
        acls: dict[bytes, bytes] = {}
        if default is not None:
            mode, access = permissions.inherited(default, mode)
            if access is not None:
                acls[permissions.ACCESS] = access
            if is_directory:
                acls[permissions.DEFAULT] = default
            # All that may be refused is refused before anything is made.
            check_fit(acls)
        self._need_room(parent, name)
        now = self._clock.now_ns()
        ino = self.inodes.allocate()
        size = DIRECTORY_SIZE if is_directory else len(target) if target is not None else 0
        aux = parent if is_directory else rdev
        nlink = 2 if is_directory else 1
        attr = Attr(mode, uid, gid, nlink, size, now, now, now, NO_BLOB, aux, 0)
        # First what may meet damage: it looks for what has this number.
        self.inodes.put(ino, attr)
        self._enter(parent, name, ino, mode, now, subdirectories=int(is_directory))
        self.xattrs.is_new(ino)
        if target is not None:
            self._overlay.put(layout.SYMLINKS, layout.u48(ino), target)
        for acl, value in acls.items():
            self.xattrs.put(ino, acl, value)
        return ino

    def link(self, ino: Ino, parent: Ino, name: bytes) -> None:
        """A new name for an inode that is no directory.  EPERM, EEXIST, EMLINK, ENOENT."""
        attr = self.inodes.get(ino)
        directory = self._directory(parent)
        if stat.S_ISDIR(attr.mode):
            raise FsError(errno.EPERM)
        if self._find(parent, directory, name) is not None:
            raise FsError(errno.EEXIST)
        if attr.nlink == 0:
            raise FsError(errno.ENOENT)
        self._not_removed(parent, directory)
        if attr.nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        now = self._clock.now_ns()
        self._enter(parent, name, ino, attr.mode, now)
        self.inodes.put(ino, attr._replace(nlink=attr.nlink + 1, ctime_ns=now))

    def nameless(self, mode: int, uid: int, gid: int, target: bytes | None = None) -> Ino:
        """Make an inode that no name leads to yet, for place(); until then it is an orphan."""
        now = self._clock.now_ns()
        ino = self.inodes.allocate()
        is_directory = stat.S_ISDIR(mode)
        size = DIRECTORY_SIZE if is_directory else len(target or b"")
        aux = ROOT if is_directory else 0
        self.inodes.put(ino, Attr(mode, uid, gid, 0, size, now, now, now, NO_BLOB, aux, 0))
        self.inodes.add_orphan(ino)
        self.xattrs.is_new(ino)
        if target is not None:
            self._overlay.put(layout.SYMLINKS, layout.u48(ino), target)
        return ino

    def place(self, ino: Ino, parent: Ino, name: bytes, subdirectories: int = 0) -> Ino | None:
        """Give a nameless inode its first name, in one step also where something else has it.

        A directory that was filled has so many *subdirectories*.  Returns the inode whose last
        name was taken, if any.  ENOENT, and as rename(2) EISDIR, ENOTDIR, ENOTEMPTY.
        """
        attr, directory = self.inodes.get(ino), self._directory(parent)
        replaced = self._find(parent, directory, name)
        self._not_removed(parent, directory)
        return self._place(ino, attr, parent, name, subdirectories, replaced)

    def place_below(self, ino: Ino, parent: Ino, name: bytes, subdirectories: int = 0) -> None:
        """As place(), for a new name in a directory that has no name yet itself."""
        self._place(ino, self.inodes.get(ino), parent, name, subdirectories, None)

    def _place(
        self,
        ino: Ino,
        attr: Attr,
        parent: Ino,
        name: bytes,
        subdirectories: int,
        replaced: Found | None,
    ) -> Ino | None:
        if replaced is None:
            self._need_room(parent, name)
        now = self._clock.now_ns()
        gone = self._replace(parent, attr, replaced, now) if replaced is not None else None
        is_directory = int(stat.S_ISDIR(attr.mode))
        self._enter(parent, name, ino, attr.mode, now, is_directory)
        nlink, aux = (2 + subdirectories, parent) if is_directory else (1, attr.aux)
        self.inodes.put(ino, attr._replace(nlink=nlink, aux=aux, ctime_ns=now))
        self.inodes.named(ino)
        return gone

    def _need_room(self, parent: Ino, name: bytes) -> tuple[int, bool]:
        place = self.names.place(parent, name)
        if place is None:
            raise FsError(errno.ENOSPC, "too many names of this directory collide")
        return place

    def _enter(
        self, parent: Ino, name: bytes, ino: Ino, mode: int, now: int, subdirectories: int = 0
    ) -> None:
        cookie, displaced = self._need_room(parent, name)
        self.names.put(parent, cookie, name, ino, mode >> 12)
        self._touch_directory(parent, now, 1, subdirectories, displaced=displaced)

    def _touch_directory(
        self, ino: Ino, now: int, entries: int, subdirectories: int, *, displaced: bool = False
    ) -> None:
        attr = self.inodes.get(ino)
        self.inodes.put(
            ino,
            attr._replace(
                # One without a name has no links, whatever is put into it (see place()).
                nlink=attr.nlink and attr.nlink + subdirectories,
                mtime_ns=now,
                ctime_ns=now,
                blob=BlobNo(attr.blob + entries),
                flags=attr.flags | (layout.INODE_PROBED if displaced else 0),
            ),
        )

    # -- removing ----------------------------------------------------------------------------

    def unlink(self, parent: Ino, name: bytes) -> tuple[Ino, bool]:
        """Remove a name of something that is no directory; the inode, and whether it was its last.

        The inode itself stays, as an orphan, until reap().
        """
        directory = self._directory(parent)
        found = self._need(parent, directory, name)
        attr = self.inodes.get(found.ino)
        if stat.S_ISDIR(attr.mode):
            raise FsError(errno.EISDIR)
        now = self._clock.now_ns()
        self.names.remove(parent, found.cookie)
        self._touch_directory(parent, now, -1, 0)
        return found.ino, self._drop_link(found.ino, attr, now)

    def _drop_link(self, ino: Ino, attr: Attr, now: int) -> bool:
        if stat.S_ISDIR(attr.mode):
            self.detached.orphan(ino, attr, now)
            return True
        return self.inodes.drop_link(ino, attr, now)

    def rmdir(self, parent: Ino, name: bytes) -> Ino:
        """Remove an empty directory; it stays as an orphan until reap()."""
        found = self._need(parent, self._directory(parent), name)
        if self._directory(found.ino).blob:
            raise FsError(errno.ENOTEMPTY)
        return self.detach(parent, name)

    def detach(self, parent: Ino, name: bytes) -> Ino:
        """Remove a directory with all that is below it, in one step (cafs.tree.detached)."""
        directory = self._directory(parent)
        found = self._need(parent, directory, name)
        attr = self._directory(found.ino)
        now = self._clock.now_ns()
        self.names.remove(parent, found.cookie)
        self._touch_directory(parent, now, -1, -1)
        self._drop_link(found.ino, attr, now)
        if attr.blob:
            self.detached.add(found.ino)
        return found.ino

    def reap(self, ino: Ino) -> None:
        """Remove an orphan that nobody holds any more, with all that hangs on it.

        One that still has entries stays: it goes when they are gone.
        """
        attr = self.inodes.find(ino)
        if attr is None or attr.nlink or is_detached(attr):
            return
        if stat.S_ISREG(attr.mode) and attr.blob:
            self._blobs.unref(attr.blob)
        elif stat.S_ISLNK(attr.mode):
            self._overlay.delete(layout.SYMLINKS, layout.u48(ino))
        self.xattrs.clear(ino)
        self.inodes.remove(ino)

    # -- renaming ----------------------------------------------------------------------------

    def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> Ino | None:
        """Rename as renameat2(2); the inode whose last name was taken, if any."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == 3:
            raise FsError(errno.EINVAL)
        source, target = self._directory(parent), self._directory(new_parent)
        moved = self._need(parent, source, name)
        replaced = self._find(new_parent, target, new_name)
        attr = self.inodes.get(moved.ino)
        if stat.S_ISDIR(attr.mode):
            self._not_below(moved.ino, new_parent)
        if flags & RENAME_EXCHANGE:
            if replaced is None:
                raise FsError(errno.ENOENT)
            self._not_removed(parent, source)
            self._not_removed(new_parent, target)
            self._exchange(parent, moved, name, new_parent, replaced, new_name)
            return None
        if replaced is not None and flags & RENAME_NOREPLACE:
            raise FsError(errno.EEXIST)
        if replaced is not None and replaced.ino == moved.ino:
            return None
        self._not_removed(new_parent, target)
        if replaced is None:
            self._need_room(new_parent, new_name)
        now = self._clock.now_ns()
        gone = None
        if replaced is not None:
            gone = self._replace(new_parent, attr, replaced, now)
        is_directory = int(stat.S_ISDIR(attr.mode))
        self.names.remove(parent, moved.cookie)
        self._touch_directory(parent, now, -1, -is_directory)
        self._enter(new_parent, new_name, moved.ino, attr.mode, now, is_directory)
        aux = new_parent if is_directory else attr.aux
        self.inodes.put(moved.ino, attr._replace(ctime_ns=now, aux=aux))
        return gone

    def _replace(self, parent: Ino, moved: Attr, replaced: Found, now: int) -> Ino | None:
        old = self.inodes.get(replaced.ino)
        if stat.S_ISDIR(old.mode):
            if not stat.S_ISDIR(moved.mode):
                raise FsError(errno.EISDIR)
            if old.blob:
                raise FsError(errno.ENOTEMPTY)
        elif stat.S_ISDIR(moved.mode):
            raise FsError(errno.ENOTDIR)
        self.names.remove(parent, replaced.cookie)
        self._touch_directory(parent, now, -1, -int(stat.S_ISDIR(old.mode)))
        return replaced.ino if self._drop_link(replaced.ino, old, now) else None

    def _exchange(
        self, parent: Ino, one: Found, name: bytes, new_parent: Ino, two: Found, new_name: bytes
    ) -> None:
        now = self._clock.now_ns()
        first, second = self.inodes.get(one.ino), self.inodes.get(two.ino)
        if stat.S_ISDIR(second.mode):
            self._not_below(two.ino, parent)
        self.names.put(parent, one.cookie, name, two.ino, second.mode >> 12)
        self.names.put(new_parent, two.cookie, new_name, one.ino, first.mode >> 12)
        for ino, attr, home in ((one.ino, first, new_parent), (two.ino, second, parent)):
            aux = home if stat.S_ISDIR(attr.mode) else attr.aux
            self.inodes.put(ino, attr._replace(ctime_ns=now, aux=aux))
        change = int(stat.S_ISDIR(second.mode)) - int(stat.S_ISDIR(first.mode))
        self._touch_directory(parent, now, 0, change if parent != new_parent else 0)
        self._touch_directory(new_parent, now, 0, -change if parent != new_parent else 0)

    def _not_below(self, ino: Ino, place: Ino) -> None:
        """Raise FsError(EINVAL) if *place* is *ino* or lies below it."""
        while place != ROOT:
            if place == ino:
                raise FsError(errno.EINVAL)
            place = Ino(self.inodes.get(place).aux)

    # -- content -----------------------------------------------------------------------------

    def publish(self, ino: Ino, blob: BlobNo, size: int) -> None:
        """The content of a regular file is this blob now."""
        attr = self.inodes.get(ino)
        if blob != attr.blob:
            if blob:
                self._blobs.ref(blob)
            if attr.blob:
                self._blobs.unref(attr.blob)
        new = attr._replace(blob=blob, size=size, aux=self._blobs.hole_bytes(blob) if blob else 0)
        if new != attr:
            self.inodes.put(ino, new)

    def written(self, ino: Ino, *, privileged: bool) -> None:
        """A file is written to: what lets it run as somebody else falls."""
        attr = self.inodes.get(ino)
        if attr.mode & (stat.S_ISUID | stat.S_ISGID) and not privileged:
            self.inodes.put(ino, permissions.after_write(attr))
        if self.xattrs.get(ino, CAPABILITY) is not None:
            self.xattrs.remove(ino, CAPABILITY)
