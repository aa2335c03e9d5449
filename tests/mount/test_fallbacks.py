"""What a pyfuse3 filesystem has no handler for: each fails cleanly or falls back.

docs/posix.md lists these, one line for each test here.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    RENAME_WHITEOUT,
    fails,
    fallocate,
    renameat2,
)

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FICLONE = 0x80086601, 0x40086602, 0x40049409
FS_APPEND_FL = 0x20
F_SETLEASE = 1024
DATA = random.Random(4).randbytes(300_000)
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def file(place: Place) -> Path:
    """A file of DATA."""
    path = place / "f"
    path.write_bytes(DATA)
    return path


def test_fallocate_is_not_supported(place: Place, file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    try:
        if place.is_cafs:
            for mode in (0, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE):
                for _ in range(2):  # the kernel asks once and remembers
                    with fails(errno.EOPNOTSUPP):
                        fallocate(fd, mode, 0, 4096)
            assert os.pread(fd, len(DATA), 0) == DATA
        else:
            fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 4096)
            assert os.pread(fd, 4096, 0) == bytes(4096)
    finally:
        os.close(fd)


def test_posix_fallocate_falls_back_to_writing(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    try:
        os.posix_fallocate(fd, 0, len(DATA) + 50_000)
    finally:
        os.close(fd)
    assert file.read_bytes() == DATA + bytes(50_000)


def test_copy_file_range_falls_back_to_copying(place: Place, file: Path) -> None:
    source, target = os.open(file, os.O_RDONLY), os.open(place / "g", os.O_CREAT | os.O_RDWR)
    try:
        done = 0
        while done < 200_000:
            count = os.copy_file_range(source, target, 200_000 - done, 1000 + done, done)
            assert count > 0
            done += count
    finally:
        os.close(source)
        os.close(target)
    assert (place / "g").read_bytes() == DATA[1000:201_000]


def test_sendfile_and_splice(place: Place, file: Path) -> None:
    source, target = os.open(file, os.O_RDONLY), os.open(place / "g", os.O_CREAT | os.O_RDWR)
    reader, writer = os.pipe()
    try:
        done = 0
        while done < 100_000:
            done += os.sendfile(target, source, done, 100_000 - done)
        got = os.splice(source, writer, 30_000, offset_src=100_000)
        assert os.splice(reader, target, got, offset_dst=100_000) == got
    finally:
        for fd in (source, target, reader, writer):
            os.close(fd)
    assert (place / "g").read_bytes() == DATA[: 100_000 + got]


def test_seek_hole_and_data_show_no_holes(place: Place) -> None:
    fd = os.open(place / "sparse", os.O_CREAT | os.O_RDWR)
    try:
        os.pwrite(fd, b"x" * 4096, 1 << 20)
        os.fsync(fd)
        data, hole = os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)
        end = (1 << 20) + 4096
        assert (data, hole) == ((0, end) if place.is_cafs else (1 << 20, 0))
        assert os.lseek(fd, end - 5, os.SEEK_DATA) == end - 5
        assert os.lseek(fd, end - 5, os.SEEK_HOLE) == end
        with fails(errno.ENXIO):
            os.lseek(fd, end, os.SEEK_DATA)
    finally:
        os.close(fd)


def test_o_tmpfile_is_refused_and_tempfile_falls_back(place: Place) -> None:
    import tempfile

    if place.is_cafs:
        with fails(errno.EOPNOTSUPP):
            os.open(place.path, os.O_TMPFILE | os.O_RDWR)
    else:
        os.close(os.open(place.path, os.O_TMPFILE | os.O_RDWR))
    with tempfile.TemporaryFile(dir=place.path) as stream:
        stream.write(b"nameless")
        stream.seek(0)
        assert stream.read() == b"nameless"
    assert os.listdir(place.path) == []


def test_chattr_and_lsattr_are_refused(place: Place, file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    flags = array.array("l", [0])
    try:
        if place.is_cafs:
            with fails(errno.ENOTTY, errno.EOPNOTSUPP):
                fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
            flags[0] = FS_APPEND_FL
            with fails(errno.ENOTTY, errno.EOPNOTSUPP):
                fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags)
        else:
            fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
    finally:
        os.close(fd)
    if place.is_cafs and shutil.which("chattr"):
        assert subprocess.run(["chattr", "+i", file], stderr=subprocess.PIPE).returncode == 1
    file.write_bytes(b"still writable")


def test_reflink_is_refused_and_cp_falls_back(place: Place, file: Path) -> None:
    with file.open("rb") as source, (place / "g").open("wb") as target, fails(errno.EOPNOTSUPP):
        fcntl.ioctl(target, FICLONE, source.fileno())
    subprocess.run(["cp", "--reflink=auto", file, place / "g"], check=True)
    assert (place / "g").read_bytes() == DATA


def test_rename_with_a_whiteout_is_refused(place: Place, file: Path) -> None:
    if place.is_cafs:
        with fails(errno.EINVAL):
            renameat2(file, place / "g", RENAME_WHITEOUT)
        assert os.listdir(place.path) == ["f"]
    elif os.geteuid() == 0:
        renameat2(file, place / "g", RENAME_WHITEOUT)


def test_syncfs_and_sync_succeed(place: Place, file: Path) -> None:
    # syncfs is no request of a FUSE mount: the kernel only hands over its own dirty pages.
    with file.open("rb+") as stream:
        stream.write(b"changed")
        assert _libc.syncfs(stream.fileno()) == 0
    assert file.read_bytes()[:7] == b"changed"


def test_swapping_to_a_file_is_refused(place: Place) -> None:
    if os.geteuid() != 0 or not shutil.which("mkswap"):
        pytest.skip("only root swaps, with mkswap")
    if not place.is_cafs:
        pytest.skip("the control would really swap")
    path = place / "swap"
    path.write_bytes(bytes(1 << 20))
    path.chmod(0o600)
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    assert _libc.swapon(os.fsencode(path), 0) == -1
    assert ctypes.get_errno() == errno.EINVAL


def test_advice_is_taken(file: Path) -> None:
    with file.open("rb") as stream:
        for advice in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED):
            os.posix_fadvise(stream.fileno(), 0, 0, advice)
        assert stream.read() == DATA


def test_leases_follow_the_control(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(fd)


def test_inotify_tells_of_local_changes(place: Place) -> None:
    watcher = _libc.inotify_init1(os.O_NONBLOCK)
    assert watcher >= 0
    try:
        created = 0x100
        assert _libc.inotify_add_watch(watcher, os.fsencode(place.path), created) >= 0
        (place / "new").touch()
        assert b"new\0" in os.read(watcher, 4096)
    finally:
        os.close(watcher)
