"""FUSE requests over the store: translation only.

One method a request; permissions were checked by the kernel (default_permissions).  A handler
without an await is atomic and is everybody's service time, so what may take long is awaited.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

import pyfuse3
from pyfuse3 import FUSEError, RequestContext

from cafs.errors import CafsError, FsError, ReadOnlyError
from cafs.latency import READ
from cafs.mount.damage import DamageReporter
from cafs.mount.directory_handlers import DirectoryHandlers
from cafs.mount.invalidate import Invalidator
from cafs.mount.known import Known
from cafs.mount.translate import (
    BLOCK_SIZE,
    entry,
    entry_once,
    handler,
    no_entry,
    wanted,
)
from cafs.notices import Change, EntryChanged, InodeChanged
from cafs.store import Store
from cafs.tree import permissions, sizes
from cafs.tree.permissions import ACCESS
from cafs.tree.tree import RENAME_EXCHANGE
from cafs.types import Attr, Ino

log = logging.getLogger(__name__)

BYTES_PER_INODE = 512
"""What an inode with its name takes of the index, about: the basis of df -i."""


class OpenFile(NamedTuple):
    """What a file handle stands for."""

    ino: Ino
    writable: bool
    privileged: bool
    """Opened by root: its writes leave setuid and setgid as they are (CAP_FSETID)."""
    noatime: bool
    """Opened with O_NOATIME: its reads leave no trace."""


class Handlers(DirectoryHandlers):
    """The requests of one mount."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self, store: Store, damage: DamageReporter, known: Known, invalidator: Invalidator
    ) -> None:
        super().__init__(store, damage, known)
        self._invalidator = invalidator
        self._clock, self._latency = store.clock, store.latency
        self._files: dict[int, OpenFile] = {}
        self._next_handle = 1

    def noticed_damage(self, request: str, arguments: Sequence[object], error: CafsError) -> None:
        """See cafs.mount.translate.NoticesDamage."""
        subject = arguments[0] if arguments and isinstance(arguments[0], int) else 0
        ino = Ino(subject)
        if request in ("read", "write", "fsync") and subject in self._files:
            ino = self._files[subject].ino
        elif request == "lookup" and isinstance(arguments[1], bytes):
            try:
                ino = self._tree.lookup(ino, arguments[1]) or ino
            except CafsError:
                # The directory is what is damaged.
                pass
        self._damage.notice(request, ino, error)

    # -- attributes --------------------------------------------------------------------------

    @handler
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name."""
        self._latency.requests += 1
        self._known.asked(parent_inode, name)
        ino = self._tree.lookup(Ino(parent_inode), name)
        return no_entry() if ino is None else self._told(ino)

    def _entry(self, ino: Ino) -> pyfuse3.EntryAttributes:
        return entry_once(ino, self._contents.attr(ino))

    def _told(self, ino: Ino) -> pyfuse3.EntryAttributes:
        """An answer with which the kernel comes to know an inode, until it forgets it."""
        attr = self._contents.attr(ino)
        self._known.told(ino, attr.mode)
        return entry(ino, attr)

    @handler
    async def getattr(self, inode: int, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        """Attributes of an inode."""
        self._latency.requests += 1
        return self._entry(Ino(inode))

    @handler
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Change attributes, size included."""
        ino = Ino(inode)
        self._contents.save_times(ino)
        old = self._contents.attr(ino)
        new = wanted(old, attr, fields)
        try:
            self._store.space.admit_removal()
        except ReadOnlyError:
            # bpm and pre-start scripts set what is set already, also on a read-only disk.
            if new == old and not fields.update_size:
                return self._entry(ino)
            raise
        await self._store.make_room()
        self._contents.save_times(ino)
        new = wanted(self._tree.inodes.get(ino), attr, fields)
        if fields.update_size:
            privileged = ctx.uid == 0
            await self._contents.truncate(ino, attr.st_size, privileged=privileged)
            self._contents.save_times(ino)
            new = wanted(self._tree.inodes.get(ino), attr, fields)
        changes = fields.update_mode or fields.update_uid or fields.update_gid
        if changes or fields.update_atime or fields.update_mtime or not fields.update_size:
            self._apply(ino, new, chmod=fields.update_mode)
        return self._entry(ino)

    def _apply(self, ino: Ino, new: Attr, *, chmod: bool) -> None:
        record = self._tree.inodes.get(ino)
        now = self._store.clock.now_ns()
        # Size and holes are the draft's business, not the record's.
        new = new._replace(size=record.size, blob=record.blob, aux=record.aux, ctime_ns=now)
        # First what may meet damage.
        acl = self._tree.xattrs.get(ino, ACCESS) if chmod else None
        if acl is not None:
            self._tree.xattrs.put(ino, ACCESS, permissions.acl_after_chmod(acl, new.mode))
        self._tree.inodes.put(ino, new)

    @handler
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Room: of the disk below, and for so many inodes as its free space allows."""
        space, counters = self._store.space, self._store.counters
        result = pyfuse3.StatvfsData()
        free = space.free()
        result.f_bsize = result.f_frsize = BLOCK_SIZE
        result.f_blocks = space.total // BLOCK_SIZE
        result.f_bfree = result.f_bavail = free // BLOCK_SIZE
        result.f_ffree = result.f_favail = free // BYTES_PER_INODE
        result.f_files = counters.inodes + result.f_ffree
        result.f_namemax = 255
        return result

    # -- names -------------------------------------------------------------------------------

    async def _create(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext, **more: object
    ) -> Ino:
        self._known.asked(parent)
        self._store.space.admit(0)
        await self._store.make_room()
        return self._tree.create(Ino(parent), name, mode, ctx.uid, ctx.gid, **more)  # type: ignore[arg-type]

    @handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a file, device node, FIFO or socket."""
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        special = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return self._entry(
            await self._create(parent_inode, name, mode, ctx, rdev=rdev if special else 0)
        )

    @handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        return self._told(await self._create(parent_inode, name, mode, ctx))

    @handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a symbolic link."""
        mode = stat.S_IFLNK | 0o777
        return self._entry(await self._create(parent_inode, name, mode, ctx, target=target))

    @handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a hard link."""
        self._known.asked(new_parent_inode)
        self._store.space.admit(0)
        await self._store.make_room()
        self._contents.save_times(Ino(inode))
        self._tree.link(Ino(inode), Ino(new_parent_inode), new_name)
        return self._entry(Ino(inode))

    @handler
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """A symbolic link's target."""
        self._accessed(Ino(inode))
        return self._tree.readlink(Ino(inode))

    @handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a name; the inode goes when the kernel forgets it."""
        self._store.space.admit_removal()
        await self._store.make_room()
        self._tree.unlink(Ino(parent_inode), name)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        self._store.space.admit_removal()
        await self._store.make_room()
        self._tree.rmdir(Ino(parent_inode), name)

    @handler
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Rename; what has moved into place is on disk when this returns."""
        self._known.asked(parent_inode_new)
        self._store.space.admit_removal()
        moved = [self._tree.lookup(Ino(parent_inode_old), name_old)]
        if flags & RENAME_EXCHANGE:
            moved.append(self._tree.lookup(Ino(parent_inode_new), name_new))
        for ino in moved:
            if ino is None:
                raise FsError(errno.ENOENT)
            await self._contents.settle(ino)
        old, new = Ino(parent_inode_old), Ino(parent_inode_new)
        replaced = self._tree.lookup(new, name_new)
        self._tree.rename(old, name_old, new, name_new, flags)
        try:
            await self._store.commit()
        except CafsError:
            # It has happened all the same, and the kernel goes by what it is told here.
            changes: list[Change] = [EntryChanged(old, name_old), EntryChanged(new, name_new)]
            inodes = {old, new, *moved, replaced}
            changes += [InodeChanged(ino) for ino in inodes if ino is not None]
            self._invalidator.tell_soon(changes)
            raise

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel lets go of inodes: those without a name go.

        It takes no answer, so whatever is raised here would end pyfuse3's main loop.
        """
        for ino, times in inode_list:
            try:
                self._known.forgotten(ino, times)
                self._store.nameless.forget(Ino(ino))
            except Exception:
                log.exception("defect in forget: inode %d stays until the next start", ino)

    # -- files -------------------------------------------------------------------------------

    def _open(self, ino: Ino, flags: int, ctx: RequestContext) -> pyfuse3.FileInfo:
        number = self._next_handle
        self._next_handle += 1
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        noatime = bool(flags & os.O_NOATIME)
        self._files[number] = OpenFile(ino, writable, ctx.uid == 0, noatime)
        self._contents.opened(ino, writable=writable)
        return pyfuse3.FileInfo(fh=number, keep_cache=True)

    @handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> pyfuse3.FileInfo:
        """Open a file, perhaps truncating it (the kernel leaves O_TRUNC to us)."""
        ino = Ino(inode)
        self._tree.inodes.get(ino)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._store.space.admit_removal()
        info = self._open(ino, flags, ctx)
        if flags & os.O_TRUNC:
            try:
                await self._contents.truncate(ino, 0, privileged=ctx.uid == 0)
            except BaseException:
                self._close(info.fh)
                raise
        return info

    @handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file and open it."""
        mode = mode & 0o7777 | stat.S_IFREG
        try:
            ino = await self._create(parent_inode, name, mode, ctx)
        except FsError as error:
            if error.errno == errno.EEXIST and not flags & os.O_EXCL:
                # It came over HTTP since the kernel looked, which looks again at this.
                raise FsError(errno.ESTALE) from None
            raise
        return self._open(ino, flags, ctx), self._entry(ino)

    @handler
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read from a file."""
        self._latency.requests += 1
        file = self._files[fh]
        if not file.noatime:
            self._accessed(file.ino)
        began = self._clock.monotonic()
        data = await self._contents.view(file.ino, off, off + size)
        self._latency.note(READ, self._clock.monotonic() - began)
        # Any buffer will do, whatever pyfuse3's annotation says.
        return data  # type: ignore[return-value]

    @handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write to a file; O_SYNC is the kernel's, which sends an fsync after it."""
        self._latency.requests += 1
        file = self._files[fh]
        buf = buf[: sizes.room_at(off)]
        await self._contents.write(file.ino, off, buf, privileged=file.privileged)
        return len(buf)

    @handler
    async def flush(self, fh: int) -> None:
        """close(2) promises nothing; the kernel need not ask again."""
        raise FUSEError(errno.ENOSYS)

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        """The file is on disk, with its name, when this returns."""
        await self._store.sync_file(self._files[fh].ino)

    @handler
    async def release(self, fh: int) -> None:
        """The last descriptor of an open file is gone."""
        self._close(fh)

    def _close(self, fh: int) -> None:
        file = self._files.pop(fh)
        self._contents.closed(file.ino, writable=file.writable)
