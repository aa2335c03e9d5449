"""Disk: every byte is written, every OSError has a meaning, a file changes whole or not at all."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cafs.durable import IOV_MAX, Disk
from cafs.errors import (
    ChunkDamagedError,
    DiskError,
    DiskFullError,
    NotFoundError,
    ReadOnlyError,
)
from tests.fault.faulty import Fault, FaultyDisk


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def fd(disk: Disk, tmp_path: Path) -> Iterator[int]:
    fd = disk.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    disk.close(fd)


def test_more_buffers_than_one_call_takes(disk: Disk, fd: int) -> None:
    buffers = [bytes((number & 0xFF,)) * (number % 5) for number in range(3 * IOV_MAX)]
    disk.pwrite_all(fd, buffers, 7)
    expected = b"".join(buffers)
    assert disk.pread_exact(fd, len(expected), 7) == expected
    assert disk.pread_exact(fd, 7, 0) == bytes(7)


def test_short_writes_and_reads_go_on(disk: Disk, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev, pread = os.pwritev, os.pread

    def short_pwritev(fd: int, buffers: list[memoryview], offset: int) -> int:
        left = 7
        taken = []
        for buffer in buffers:
            taken.append(buffer[:left])
            left -= len(taken[-1])
        return pwritev(fd, taken, offset)

    monkeypatch.setattr(os, "pwritev", short_pwritev)
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 5), offset))
    buffers = [bytes(range(start, start + 10)) for start in range(0, 200, 10)]
    disk.pwrite_all(fd, buffers, 3)
    assert disk.pread_exact(fd, 200, 3) == bytes(range(200))


def test_a_buffer_of_wider_items_is_written_in_bytes(disk: Disk, fd: int) -> None:
    disk.pwrite_all(fd, [memoryview(bytes(range(16))).cast("I")], 0)
    assert disk.pread_exact(fd, 16, 0) == bytes(range(16))


def test_reading_beyond_the_end_names_the_file(disk: Disk, fd: int, tmp_path: Path) -> None:
    disk.pwrite_all(fd, [b"abc"], 0)
    with pytest.raises(ChunkDamagedError, match=r"file ends at 3, but 4 bytes were expected at 1"):
        disk.pread_exact(fd, 4, 1)


def test_a_full_disk(disk: Disk) -> None:
    fd = disk.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(DiskFullError, match=r"/dev/full at 0: No space left"):
            disk.pwrite_all(fd, [b"x"], 0)
    finally:
        disk.close(fd)


def test_the_largest_file_size_counts_as_full(disk: Disk, fd: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DiskFullError):
            disk.pwrite_all(fd, [bytes(3000), bytes(3000)], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_missing_file_is_told_apart(disk: Disk, tmp_path: Path) -> None:
    for call in (
        lambda: disk.open(tmp_path / "none", os.O_RDONLY),
        lambda: disk.unlink(tmp_path / "none"),
        lambda: disk.rename(tmp_path / "none", tmp_path / "other"),
        lambda: disk.free_bytes(tmp_path / "none"),
        lambda: disk.sync_directory(tmp_path / "none"),
    ):
        with pytest.raises(NotFoundError, match="none"):
            call()


def test_any_other_fault_is_the_disks(disk: Disk, tmp_path: Path) -> None:
    closed = os.open(tmp_path, os.O_RDONLY)
    os.close(closed)
    calls: list[Callable[[], object]] = [
        lambda: disk.pwrite_all(closed, [b"x"], 0),
        lambda: disk.pread_exact(closed, 1, 0),
        lambda: disk.truncate(closed, 0),
        lambda: disk.sync_data(closed),
        lambda: disk.sync_file(closed),
        lambda: disk.close(closed),
    ]
    for call in calls:
        with pytest.raises(DiskError, match=f"descriptor {closed}") as raised:
            call()
        assert isinstance(raised.value.__cause__, OSError)


def test_descriptors_are_not_inherited(disk: Disk, fd: int) -> None:
    assert not os.get_inheritable(fd)


def test_beginning_to_write_promises_nothing(disk: Disk, fd: int, tmp_path: Path) -> None:
    disk.pwrite_all(fd, [b"x" * 300_000], 0)
    disk.begin_writing(fd, 0, 300_000)
    disk.begin_writing(fd, 1 << 40, 1)
    assert disk.pread_exact(fd, 300_000, 0) == b"x" * 300_000
    # Nor does it say what is wrong.
    disk.begin_writing(-1, 0, 1)


def test_free_bytes(disk: Disk, tmp_path: Path) -> None:
    assert 0 < disk.free_bytes(tmp_path) <= os.statvfs(tmp_path).f_blocks * 1 << 20


def test_write_file_at_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "file"
    faults = 0
    while True:
        path.write_bytes(b"old")
        disk = FaultyDisk([Fault(faults + 1, errno.EROFS)])
        try:
            disk.write_file(path, b"new content")
        except ReadOnlyError:
            faults += 1
            assert disk.all_fired
            # The fifth step makes the new name durable: it is there by then.
            assert path.read_bytes() == (b"new content" if faults == 5 else b"old")
            assert os.listdir(tmp_path) == ["file"]
        else:
            break
    assert faults == len(["open", "pwrite_all", "sync_file", "rename", "sync_file"])
    assert path.read_bytes() == b"new content"
    assert not disk.all_fired


def test_write_file_order_and_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "file.new").write_bytes(b"left behind by a kill, and longer than what comes")
    disk = FaultyDisk()
    disk.write_file(path, b"content")
    assert disk.calls == [
        f"open {path}.new",
        f"pwrite_all {path}.new",
        f"sync_file {path}.new",
        f"rename {path}",
        f"sync_file {tmp_path}",
    ]
    assert path.read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["file"]


def test_sticky_faults_end_with_healing(tmp_path: Path) -> None:
    disk = FaultyDisk([Fault(2, errno.ENOSPC, call="open", sticky=True)])
    disk.close(disk.open(tmp_path / "a", os.O_CREAT))
    assert disk.failed == []
    for _ in range(2):
        with pytest.raises(DiskFullError):
            disk.open(tmp_path / "b", os.O_CREAT)
    assert disk.failed == [f"open {tmp_path / 'b'}"] * 2
    assert disk.all_fired
    disk.close(disk.open(tmp_path / "a", os.O_RDONLY))
    disk.heal()
    disk.close(disk.open(tmp_path / "b", os.O_CREAT))
