"""Small differences that docs/posix.md lists: what a program sees on ext4, and what on a mount."""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import STATX_BASIC_STATS, STATX_BTIME, fails, statx_mask

DATA = random.Random(5).randbytes(20_000)


@pytest.fixture
def file(place: Place) -> Path:
    """A file of DATA."""
    path = place / "f"
    path.write_bytes(DATA)
    return path


def test_there_is_no_time_of_birth(place: Place, file: Path) -> None:
    for path in (file, place.path):
        mask = statx_mask(path)
        assert mask & STATX_BASIC_STATS == STATX_BASIC_STATS
        assert bool(mask & STATX_BTIME) is not place.is_cafs


def test_reads_that_must_not_wait_are_refused(place: Place, file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        buffer = bytearray(100)
        if place.is_cafs:
            with fails(errno.EOPNOTSUPP):
                os.preadv(fd, [buffer], 0, os.RWF_NOWAIT)
        else:
            assert os.preadv(fd, [buffer], 0) == 100
            assert os.preadv(fd, [buffer], 0, os.RWF_NOWAIT) == 100
        assert os.preadv(fd, [buffer], 0, 0) == 100
        assert buffer == DATA[:100]
    finally:
        os.close(fd)


@pytest.mark.parametrize(("offset", "length"), [(3, 512), (0, 100), (4096, 4095)])
def test_direct_io_need_not_be_aligned(place: Place, file: Path, offset: int, length: int) -> None:
    fd = os.open(file, os.O_RDWR | os.O_DIRECT)
    pages = mmap.mmap(-1, 8192)
    try:
        with memoryview(pages)[:length] as buffer:
            if place.is_cafs:
                assert os.preadv(fd, [buffer], offset) == length
                assert buffer == DATA[offset : offset + length]
                buffer[:] = bytes(length)
                assert os.pwritev(fd, [buffer], offset) == length
            else:
                with fails(errno.EINVAL):
                    os.preadv(fd, [buffer], offset)
                with fails(errno.EINVAL):
                    os.pwritev(fd, [buffer], offset)
    finally:
        pages.close()
        os.close(fd)
    if place.is_cafs:
        assert file.read_bytes() == DATA[:offset] + bytes(length) + DATA[offset + length :]


@pytest.mark.parametrize("position", [(1 << 44) - 4095, 1 << 62])
def test_positions_behind_the_largest_file(place: Place, file: Path, position: int) -> None:
    fd = os.open(file, os.O_RDWR)
    try:
        if place.is_cafs:
            assert os.lseek(fd, position, os.SEEK_SET) == position
            assert os.read(fd, 10) == b""
            with fails(errno.EFBIG):
                os.write(fd, b"x")
        else:
            with fails(errno.EINVAL):
                os.lseek(fd, position, os.SEEK_SET)
    finally:
        os.close(fd)
    assert file.stat().st_size == len(DATA)


def test_what_the_c_library_guesses(place: Place, file: Path) -> None:
    for path in (file, place.path):
        assert os.pathconf(path, "PC_LINK_MAX") == (127 if place.is_cafs else 65_000)
        assert os.pathconf(path, "PC_FILESIZEBITS") == (32 if place.is_cafs else 64)
    for number in range(150):
        os.link(file, place / f"link{number}")
    os.truncate(file, 1 << 33)
    assert (file.stat().st_nlink, file.stat().st_size) == (151, 1 << 33)


def test_size_of_requests_that_is_preferred(place: Place, file: Path) -> None:
    for path in (file, place.path):
        assert path.stat().st_blksize == (131_072 if place.is_cafs else 4096)
        assert os.statvfs(path).f_bsize == 4096


def test_time_of_a_store_through_a_mapping(place: Place) -> None:
    fd = os.open(place / "f", os.O_CREAT | os.O_RDWR)
    try:
        os.ftruncate(fd, 8192)
        with mmap.mmap(fd, 8192) as mapping:
            mapping[0] = 1
            os.utime(fd, (1000, 1000))
            mapping.flush()
        kept = os.fstat(fd).st_mtime == 1000
    finally:
        os.close(fd)
    assert kept != place.is_cafs
