"""The only code that changes store files and makes them durable.

Owns every system call that writes, syncs, renames, truncates or removes a file of the store,
so that a test can fail any one of them (see tests/fault/faulty.py).  Knows nothing of what
the bytes mean.  Invariant: no OSError leaves this module; each becomes an error of
:mod:`cafs.errors` that says what was tried and on which path.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cafs.errors import CafsError, ChunkDamagedError, NotFoundError, from_os_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE: Final = 2
_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE, which must come with FALLOC_FL_KEEP_SIZE (fallocate(2))."""
IOV_MAX: Final = 1024
"""Buffers that one pwritev(2) takes on Linux (UIO_MAXIOV)."""


def _fault(error: OSError, doing: str) -> CafsError:
    """A missing file is told apart, because callers treat it differently from a bad disk."""
    if error.errno == errno.ENOENT:
        return NotFoundError(f"{doing}: {error.strerror}")
    return from_os_error(error, doing)


class Disk:
    """The backing disk.  Thread-safe: it keeps nothing but the path of each descriptor.

    Every method blocks.  Every method raises DiskFullError (ENOSPC, EDQUOT, EFBIG),
    ReadOnlyError (EROFS), NotFoundError (ENOENT) or DiskError (anything else), with the
    OSError as its cause.
    """

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}

    def _name(self, fd: int) -> str:
        return self._paths.get(fd, f"descriptor {fd}")

    # -- descriptors

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> int:
        """Open *path*; the descriptor is closed across exec and belongs to the caller."""
        name = os.fspath(path)
        try:
            fd = os.open(name, flags | os.O_CLOEXEC, mode)
        except OSError as error:
            raise _fault(error, f"open {name}") from error
        self._paths[fd] = name
        return fd

    def close(self, fd: int) -> None:
        """Close *fd*.  It is closed even when this raises: Linux frees the number first."""
        # Forgotten before the close: the number may be given out again at once.
        name = self._paths.pop(fd, f"descriptor {fd}")
        try:
            os.close(fd)
        except OSError as error:
            raise _fault(error, f"close {name}") from error

    # -- reading

    def pread_exact(self, fd: int, length: int, offset: int) -> bytes:
        """*length* bytes from *offset*.

        Raises ChunkDamagedError when the file ends before that.
        """
        try:
            data = os.pread(fd, length, offset)
            if len(data) == length:
                return data
            # Signals and the 2 GiB limit of one read(2) end a read early; so does the file.
            parts = [data]
            missing = length - len(data)
            while data and missing:
                data = os.pread(fd, missing, offset + length - missing)
                parts.append(data)
                missing -= len(data)
        except OSError as error:
            raise _fault(error, f"read {self._name(fd)} at {offset}") from error
        if missing:
            raise ChunkDamagedError(
                f"{self._name(fd)} ends at {offset + length - missing},"
                f" but {length} bytes were expected at {offset}"
            )
        return b"".join(parts)

    def free_bytes(self, path: str | os.PathLike[str]) -> int:
        """Bytes that this user may still write on the filesystem of *path*."""
        try:
            status = os.statvfs(path)
        except OSError as error:
            raise _fault(error, f"ask for the free space of {os.fspath(path)}") from error
        return status.f_bavail * status.f_frsize

    # -- changing

    def pwrite_all(self, fd: int, buffers: Sequence[ReadableBuffer], offset: int) -> None:
        """Write *buffers* back to back from *offset*; on a fault some of it may be there."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        views = [view for view in views if view.nbytes]
        first = 0
        while first < len(views):
            try:
                count = os.pwritev(fd, views[first : first + IOV_MAX], offset)
                if count == 0:
                    raise OSError(errno.EIO, "the disk takes no more bytes")
            except OSError as error:
                raise _fault(error, f"write to {self._name(fd)} at {offset}") from error
            offset += count
            while first < len(views) and count >= views[first].nbytes:
                count -= views[first].nbytes
                first += 1
            if count:
                views[first] = views[first][count:]

    def truncate(self, fd: int, length: int) -> None:
        """Make the file *length* bytes long."""
        try:
            os.ftruncate(fd, length)
        except OSError as error:
            raise _fault(error, f"truncate {self._name(fd)} to {length}") from error

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Give the space of *length* bytes from *offset* back; they read as zeros from then on.

        Raises DiskError where the filesystem cannot do that.
        """
        if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length):
            error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            raise _fault(error, f"punch a hole into {self._name(fd)} at {offset}")

    def begin_writing(self, fd: int, offset: int, length: int) -> None:
        """Have the disk begin with bytes that were just written, so that a sync waits less.

        Promises nothing (sync_file_range(2)): what fails is the next sync's to say.
        """
        _libc.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    def sync_data(self, fd: int) -> None:
        """fdatasync(2): the bytes, and the length that is needed to read them."""
        try:
            os.fdatasync(fd)
        except OSError as error:
            raise _fault(error, f"sync {self._name(fd)}") from error

    def sync_file(self, fd: int) -> None:
        """fsync(2): the bytes and every attribute of the file."""
        try:
            os.fsync(fd)
        except OSError as error:
            raise _fault(error, f"sync {self._name(fd)}") from error

    def sync_directory(self, path: str | os.PathLike[str]) -> None:
        """Make the names in a directory durable: what was created, renamed or removed."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync_file(fd)
        finally:
            self.close(fd)

    def rename(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        """Rename over *dst*; durable only after :meth:`sync_directory`."""
        try:
            os.rename(src, dst)
        except OSError as error:
            raise _fault(error, f"rename {os.fspath(src)} to {os.fspath(dst)}") from error

    def unlink(self, path: str | os.PathLike[str]) -> None:
        """Remove one name; durable only after :meth:`sync_directory`."""
        try:
            os.unlink(path)
        except OSError as error:
            raise _fault(error, f"remove {os.fspath(path)}") from error

    def take_rights(self, fd: int, path: str | os.PathLike[str]) -> None:
        """Give a file the permissions, owner and group of the one at *path*."""
        try:
            like = os.stat(path)
            mine = os.fstat(fd)
            if (like.st_uid, like.st_gid) != (mine.st_uid, mine.st_gid):
                os.fchown(fd, like.st_uid, like.st_gid)
            os.fchmod(fd, like.st_mode & 0o7777)
        except OSError as error:
            raise _fault(error, f"give {self._name(fd)} the rights of {os.fspath(path)}") from error

    def write_file(
        self,
        path: str | os.PathLike[str],
        data: ReadableBuffer,
        mode: int = 0o600,
        *,
        keep_rights: bool = False,
    ) -> None:
        """Make *path* hold *data*: whole and durable when this returns.

        With *keep_rights* it keeps the permissions, owner and group that it has.

        When it raises, the path has its old content or the new, whole, whatever happens next.
        The temporary name is always the same one (*path* + ``.new``), so that the next try
        takes the place of what a kill left behind.  So one path has one writer at a time.
        """
        name = os.fspath(path)
        temporary = f"{name}.new"
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            try:
                if keep_rights:
                    self.take_rights(fd, name)
                self.pwrite_all(fd, [data], 0)
                self.sync_file(fd)
            finally:
                self.close(fd)
            self.rename(temporary, name)
        except CafsError:
            # What failed first is what the caller must hear of.
            with contextlib.suppress(CafsError):
                self.unlink(temporary)
            raise
        self.sync_directory(os.path.dirname(name) or ".")
