"""System calls that Python's os module lacks, and calls made as somebody else.

Invariant: a failing call raises OSError with the kernel's own errno, as those of os do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import platform
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

T = TypeVar("T")
AnyPath = str | bytes | Path
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
AT_FDCWD = -100
STATX_BASIC_STATS, STATX_BTIME = 0x7FF, 0x800
_MAX_HANDLE = 128
_DIRENT = struct.Struct("=QqHB")
_libc = ctypes.CDLL(None, use_errno=True)
_GETDENTS64 = {"x86_64": 217, "aarch64": 61}


@contextlib.contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """Expect an OSError whose errno is one of *numbers*."""
    try:
        yield
    except OSError as error:
        got = errno.errorcode.get(error.errno or 0, str(error.errno))
        want = [errno.errorcode[number] for number in numbers]
        assert error.errno in numbers, f"{got} instead of {want}: {error}"
    else:
        raise AssertionError(f"succeeded instead of {[errno.errorcode[n] for n in numbers]}")


def outcome(call: Callable[[], object]) -> str:
    """``ok`` or the name of the errno that *call* raised."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "ok"


def as_user(uid: int, call: Callable[[], T], *, gid: int | None = None, groups: Any = ()) -> T:
    """Run *call* in a child that is *uid* and nobody else; return or raise what it did.

    The group is *gid*, or the same number as *uid*; *groups* are the supplementary ones.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        result: object
        try:
            os.setgroups(list(groups))
            gid_ = uid if gid is None else gid
            os.setresgid(gid_, gid_, gid_)
            os.setresuid(uid, uid, uid)
            result = (True, call())
        except OSError as error:
            result = (False, (error.errno, str(error)))
        except BaseException as error:
            result = (False, (None, repr(error)))
        os.write(writer, pickle.dumps(result))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    done, value = pickle.loads(data)
    if done:
        return value  # type: ignore[no-any-return]
    number, text = value
    if number is None:
        raise AssertionError(text)
    raise OSError(number, text)


def renameat2(old: AnyPath, new: AnyPath, flags: int) -> None:
    """renameat2(2) relative to the working directory."""
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) itself, without the emulation that glibc's posix_fallocate has."""
    off = ctypes.c_int64
    _check(_libc.fallocate(fd, mode, off(offset), off(length)))


def statx_mask(path: AnyPath) -> int:
    """What statx(2) says that it has filled in, of the basic fields and the time of birth."""
    buffer = ctypes.create_string_buffer(256)
    asked = STATX_BASIC_STATS | STATX_BTIME
    _check(_libc.statx(AT_FDCWD, os.fsencode(path), 0, asked, buffer))
    return int.from_bytes(buffer.raw[:4], sys.byteorder)


class FileHandle(NamedTuple):
    """What name_to_handle_at(2) gives."""

    type: int
    data: bytes


def name_to_handle_at(path: AnyPath) -> FileHandle:
    """The handle of *path*, as an NFS server would keep it."""
    buffer = ctypes.create_string_buffer(8 + _MAX_HANDLE)
    struct.pack_into("=Ii", buffer, 0, _MAX_HANDLE, 0)
    mount_id = ctypes.c_int()
    name = os.fsencode(path)
    _check(_libc.name_to_handle_at(AT_FDCWD, name, buffer, ctypes.byref(mount_id), 0))
    length, kind = struct.unpack_from("=Ii", buffer, 0)
    return FileHandle(kind, buffer.raw[8 : 8 + length])


def open_by_handle_at(root: AnyPath, handle: FileHandle, flags: int = os.O_RDONLY) -> int:
    """Open *handle* in the filesystem that *root* is on; the caller closes the descriptor."""
    raw = struct.pack("=Ii", len(handle.data), handle.type) + handle.data
    buffer = ctypes.create_string_buffer(raw, len(raw))
    at = os.open(root, os.O_RDONLY)
    try:
        return _check(_libc.open_by_handle_at(at, buffer, flags))
    finally:
        os.close(at)


class RawEntry(NamedTuple):
    """One entry as getdents64(2) gives it."""

    name: bytes
    ino: int
    type: int
    cookie: int
    """Where the listing goes on after this entry: telldir's value."""


class RawDirectory:
    """An open directory with its cookies in sight."""

    def __init__(self, path: AnyPath, buffer_bytes: int = 4096) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._buffer = ctypes.create_string_buffer(buffer_bytes)
        self._pending: list[RawEntry] = []

    def __enter__(self) -> RawDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def seek(self, cookie: int) -> None:
        """Go on after the entry that had *cookie*; 0 is the start."""
        self._pending.clear()
        os.lseek(self.fd, cookie, os.SEEK_SET)

    def __iter__(self) -> Iterator[RawEntry]:
        """The entries from here on, without ``.`` and ``..``."""
        while True:
            while self._pending:
                entry = self._pending.pop(0)
                if entry.name not in (b".", b".."):
                    yield entry
            if not self._fill():
                return

    def _fill(self) -> bool:
        number = _GETDENTS64[platform.machine()]
        size = len(self._buffer)
        got = _check(_libc.syscall(number, self.fd, self._buffer, size))
        at = 0
        while at < got:
            ino, cookie, length, kind = _DIRENT.unpack_from(self._buffer, at)
            name = self._buffer.raw[at + _DIRENT.size : at + length].split(b"\0", 1)[0]
            self._pending.append(RawEntry(name, ino, kind, cookie))
            at += length
        return got > 0


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
