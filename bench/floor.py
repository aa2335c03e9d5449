"""An empty pyfuse3 filesystem: what pyfuse3 and the kernel cost when the daemon does nothing.

Everything is in memory and nothing is kept of what is written: a file is its size, and reads as
zeros.  The kernel may cache all it likes, as on a cafs mount, so a difference between the two
is what cafs itself adds.  Run as ``python bench/floor.py MOUNTPOINT``; ends when unmounted.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

_KEEP_S = 1e6
_ZEROS = bytes(1024 * 1024)


class Floor(pyfuse3.Operations):
    """The least that lets ``cp -a``, ``find`` and ``rm -r`` work; handles are inode numbers."""

    supports_dot_lookup = False

    def __init__(self, writeback_cache: bool) -> None:
        super().__init__()
        self.enable_writeback_cache = writeback_cache
        self._attrs: dict[InodeT, EntryAttributes] = {}
        self._names: dict[InodeT, dict[FileNameT, InodeT]] = {}
        self._targets: dict[InodeT, FileNameT] = {}
        self._next = int(pyfuse3.ROOT_INODE)
        self._missing = EntryAttributes()
        self._missing.st_ino = InodeT(0)
        self._missing.entry_timeout = _KEEP_S
        self._make(stat.S_IFDIR | 0o755)

    def _make(self, mode: int) -> EntryAttributes:
        attr = EntryAttributes()
        attr.st_ino = InodeT(self._next)
        attr.st_mode = ModeT(mode)
        attr.st_nlink = 1
        attr.st_blksize = 4096
        attr.entry_timeout = attr.attr_timeout = _KEEP_S
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = time.time_ns()
        self._attrs[attr.st_ino] = attr
        if stat.S_ISDIR(mode):
            self._names[attr.st_ino] = {}
        self._next += 1
        return attr

    def _add(self, parent: InodeT, name: FileNameT, mode: int) -> EntryAttributes:
        names = self._names[parent]
        if name in names:
            raise FUSEError(errno.EEXIST)
        attr = self._make(mode)
        names[name] = attr.st_ino
        return attr

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        ino = self._names[parent_inode].get(name)
        return self._missing if ino is None else self._attrs[ino]

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        return

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._attrs[inode]

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        mine = self._attrs[inode]
        if fields.update_mode:
            mine.st_mode = attr.st_mode
        if fields.update_size:
            mine.st_size = attr.st_size
        if fields.update_mtime:
            mine.st_mtime_ns = attr.st_mtime_ns
        return mine

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._add(parent_inode, name, mode | stat.S_IFDIR)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        attr = self._add(parent_inode, name, stat.S_IFLNK | 0o777)
        attr.st_size = len(target)
        self._targets[attr.st_ino] = target
        return attr

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return self._targets[inode]

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        del self._attrs[self._names[parent_inode].pop(name)]

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        if self._names[self._names[parent_inode][name]]:
            raise FUSEError(errno.ENOTEMPTY)
        del self._names[self._names[parent_inode].pop(name)]

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        attr = self._add(parent_inode, name, mode | stat.S_IFREG)
        return FileInfo(fh=FileHandleT(attr.st_ino), keep_cache=True), attr

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        left = max(0, self._attrs[InodeT(fh)].st_size - off)
        return _ZEROS[: min(size, left)]

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        attr = self._attrs[InodeT(fh)]
        attr.st_size = max(attr.st_size, off + len(buf))
        return len(buf)

    async def flush(self, fh: FileHandleT) -> None:
        return

    async def release(self, fh: FileHandleT) -> None:
        return

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        return

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    async def releasedir(self, fh: FileHandleT) -> None:
        return

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        return

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        entries = list(self._names[InodeT(fh)].items())
        for position, (name, ino) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self._attrs[ino], position):
                break

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = answer.f_bfree = answer.f_bavail = 1 << 30
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 30
        answer.f_namemax = 255
        return answer


def main() -> None:
    """Serve until unmounted."""
    mountpoint = sys.argv[1]
    options = set(pyfuse3.default_options) | {"fsname=floor", "subtype=floor"}
    pyfuse3.init(Floor("--writeback" in sys.argv[2:]), os.fspath(mountpoint), options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
