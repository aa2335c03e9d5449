"""Opening, reading, writing and truncating regular files."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import fails

KIB = 1024
MIB = 1024 * KIB


def _open(path: Path, flags: int, mode: int = 0o644) -> int:
    return os.open(path, flags, mode)


def test_create_makes_an_empty_file(place: Place) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_WRONLY, 0o640)
    before = os.fstat(fd)
    os.close(fd)
    after = (place / "a").stat()
    assert (after.st_mode, after.st_size, after.st_nlink) == (0o100640, 0, 1)
    assert (after.st_uid, after.st_gid) == (os.geteuid(), os.getegid())
    assert after.st_ino == before.st_ino != 0
    assert after.st_blocks == 0


def test_create_honours_umask(place: Place) -> None:
    old = os.umask(0o077)
    try:
        os.close(_open(place / "a", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "d", 0o777)
        os.mkfifo(place / "f", 0o666)
    finally:
        os.umask(old)
    modes = [(place / name).stat().st_mode & 0o7777 for name in "adf"]
    assert modes == [0o600, 0o700, 0o600]


def test_create_with_mode_that_forbids_what_it_opens_for(place: Place) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_RDWR, 0o000)
    try:
        assert os.write(fd, b"x") == 1
        assert os.pread(fd, 10, 0) == b"x"
    finally:
        os.close(fd)
    assert (place / "a").stat().st_mode & 0o7777 == 0


def test_exclusive_create_refuses_what_exists(place: Place) -> None:
    (place / "a").write_bytes(b"x")
    (place / "dangling").symlink_to("nowhere")
    (place / "d").mkdir()
    for name in ("a", "dangling", "d"):
        with fails(errno.EEXIST):
            _open(place / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert not (place / "nowhere").exists()


def test_create_through_a_dangling_symlink(place: Place) -> None:
    (place / "l").symlink_to("target")
    os.close(_open(place / "l", os.O_CREAT | os.O_WRONLY))
    assert (place / "target").is_file()
    assert (place / "l").is_symlink()


def test_open_flags_that_refuse(place: Place) -> None:
    (place / "a").write_bytes(b"x")
    (place / "l").symlink_to("a")
    (place / "d").mkdir()
    with fails(errno.ENOTDIR):
        _open(place / "a", os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.ELOOP):
        _open(place / "l", os.O_RDONLY | os.O_NOFOLLOW)
    with fails(errno.EISDIR):
        _open(place / "d", os.O_WRONLY)
    with fails(errno.EISDIR):
        _open(place / "d", os.O_RDWR)
    with fails(errno.EISDIR):
        _open(place / "d", os.O_RDONLY | os.O_CREAT)
    with fails(errno.ENOENT):
        _open(place / "missing", os.O_RDWR)
    with fails(errno.ENOTDIR):
        _open(place / "a" / "b", os.O_RDONLY)


def test_access_mode_of_the_descriptor(place: Place) -> None:
    (place / "a").write_bytes(b"x")
    reader, writer = _open(place / "a", os.O_RDONLY), _open(place / "a", os.O_WRONLY)
    try:
        with fails(errno.EBADF):
            os.write(reader, b"y")
        with fails(errno.EBADF):
            os.read(writer, 1)
        with fails(errno.EINVAL, errno.EBADF):
            os.ftruncate(reader, 0)
    finally:
        os.close(reader)
        os.close(writer)


def test_truncating_open_empties_what_others_have_open(place: Place) -> None:
    (place / "a").write_bytes(b"0123456789")
    held = _open(place / "a", os.O_RDONLY)
    try:
        os.close(_open(place / "a", os.O_WRONLY | os.O_TRUNC))
        assert os.fstat(held).st_size == 0
        assert os.pread(held, 10, 0) == b""
    finally:
        os.close(held)


def test_append_goes_to_the_end_whatever_the_offset(place: Place) -> None:
    (place / "a").write_bytes(b"start")
    one = _open(place / "a", os.O_WRONLY | os.O_APPEND)
    two = _open(place / "a", os.O_WRONLY | os.O_APPEND)
    try:
        for i in range(20):
            os.lseek(one, 0, os.SEEK_SET)
            os.write(one if i % 2 else two, f"<{i}>".encode())
        os.ftruncate(one, 0)
        os.write(two, b"afresh")
        assert (place / "a").read_bytes() == b"afresh"
    finally:
        os.close(one)
        os.close(two)


def test_append_from_two_processes_loses_nothing(place: Place) -> None:
    path = place / "log"
    path.touch()
    children = []
    for mark in (b"a", b"b"):
        child = os.fork()
        if child == 0:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            for _ in range(50):
                os.write(fd, mark * 100)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    data = path.read_bytes()
    records = [data[i : i + 100] for i in range(0, len(data), 100)]
    assert sorted(records) == [b"a" * 100] * 50 + [b"b" * 100] * 50


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["O_SYNC", "O_DSYNC"])
def test_synchronous_writes(place: Place, flag: int) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_RDWR | flag)
    try:
        for i in range(5):
            assert os.pwrite(fd, bytes([i]) * 3000, i * 3000) == 3000
        assert os.pread(fd, 20000, 0) == b"".join(bytes([i]) * 3000 for i in range(5))
    finally:
        os.close(fd)


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync], ids=["fsync", "fdatasync"])
def test_syncing_files_and_directories(place: Place, sync: Callable[[int], None]) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_RDWR)
    directory = _open(place.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.write(fd, b"x" * 5000)
        sync(fd)
        sync(directory)
        sync(fd)
        assert os.pread(fd, 5000, 0) == b"x" * 5000
    finally:
        os.close(fd)
        os.close(directory)


def test_read_at_and_beyond_the_end(place: Place) -> None:
    (place / "a").write_bytes(b"0123456789")
    fd = _open(place / "a", os.O_RDONLY)
    try:
        assert os.pread(fd, 4, 8) == b"89"
        assert os.pread(fd, 4, 10) == b""
        assert os.pread(fd, 4, 1 << 40) == b""
        with fails(errno.EINVAL):
            os.pread(fd, 4, -1)
    finally:
        os.close(fd)


def test_one_writer_one_reader_see_the_same_at_once(place: Place) -> None:
    writer = _open(place / "a", os.O_CREAT | os.O_WRONLY)
    reader = _open(place / "a", os.O_RDONLY)
    try:
        for i in range(50):
            os.pwrite(writer, bytes([i]) * 700, i * 700)
            assert os.fstat(reader).st_size == (i + 1) * 700
            assert os.pread(reader, 700, i * 700) == bytes([i]) * 700
    finally:
        os.close(writer)
        os.close(reader)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 128 * KIB + 1, 3 * MIB + 17])
def test_written_once_from_start_to_end(place: Place, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (place / "a").write_bytes(data)
    assert (place / "a").read_bytes() == data
    assert (place / "a").stat().st_size == size


def test_random_writes_into_an_existing_file(place: Place) -> None:
    rng = random.Random(7)
    model = bytearray(rng.randbytes(2 * MIB))
    path = place / "a"
    path.write_bytes(model)
    fd = _open(path, os.O_RDWR)
    try:
        for _ in range(60):
            at, piece = rng.randrange(len(model)), rng.randbytes(rng.choice((1, 100, 9000, 70000)))
            os.pwrite(fd, piece, at)
            model[at : at + len(piece)] = piece
            look = rng.randrange(len(model))
            assert os.pread(fd, 5000, look) == bytes(model[look : look + 5000])
    finally:
        os.close(fd)
    assert path.read_bytes() == bytes(model)


def test_written_backwards_and_with_gaps(place: Place) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_WRONLY)
    try:
        for i in reversed(range(0, 40, 2)):
            os.pwrite(fd, bytes([i + 1]) * 5000, i * 5000)
    finally:
        os.close(fd)
    want = b"".join((b"\0" if i % 2 else bytes([i + 1])) * 5000 for i in range(39))
    assert (place / "a").read_bytes() == want


def test_holes_read_as_zeros_and_take_no_blocks(place: Place) -> None:
    path = place / "a"
    fd = _open(path, os.O_CREAT | os.O_RDWR)
    try:
        os.pwrite(fd, b"first", 0)
        os.pwrite(fd, b"last", 1 << 30)
        os.fsync(fd)
        assert os.pread(fd, 10, 4) == b"t" + b"\0" * 9
        assert os.pread(fd, 100, (1 << 29) + 3) == b"\0" * 100
        assert os.pread(fd, 100, (1 << 30) - 2) == b"\0\0last"
    finally:
        os.close(fd)
    status = path.stat()
    assert status.st_size == (1 << 30) + 4
    assert status.st_blocks * 512 < 1 * MIB


def test_truncate_down_then_up_leaves_zeros(place: Place) -> None:
    path = place / "a"
    data = random.Random(1).randbytes(300 * KIB)
    path.write_bytes(data)
    os.truncate(path, 100_001)
    assert path.read_bytes() == data[:100_001]
    os.truncate(path, 200_003)
    assert path.read_bytes() == data[:100_001] + bytes(100_002)
    os.truncate(path, 0)
    assert path.read_bytes() == b""
    os.truncate(path, 5)
    assert path.read_bytes() == bytes(5)


def test_truncate_while_it_is_being_written(place: Place) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_RDWR)
    try:
        os.write(fd, b"x" * 200_000)
        os.ftruncate(fd, 50_000)
        os.write(fd, b"y" * 10)  # the offset stayed at 200,000: a hole comes before it
        assert os.fstat(fd).st_size == 200_010
        assert os.pread(fd, 20, 49_990) == b"x" * 10 + bytes(10)
        assert os.pread(fd, 20, 199_995) == bytes(5) + b"y" * 10
    finally:
        os.close(fd)


def test_truncate_to_a_page_boundary_and_back(place: Place) -> None:
    path = place / "a"
    fd = _open(path, os.O_CREAT | os.O_RDWR)
    try:
        os.write(fd, b"z" * 10_000)
        for size in (4096, 4095, 4097, 8192, 1, 10_000):
            os.ftruncate(fd, size)
            assert os.fstat(fd).st_size == size
        assert os.pread(fd, 20_000, 0) == b"z" + bytes(9_999)
    finally:
        os.close(fd)


def test_truncate_refusals(place: Place) -> None:
    (place / "a").write_bytes(b"x")
    (place / "d").mkdir()
    with fails(errno.EINVAL):
        os.truncate(place / "a", -1)
    with fails(errno.EISDIR):
        os.truncate(place / "d", 0)
    with fails(errno.ENOENT):
        os.truncate(place / "missing", 0)
    assert (place / "a").read_bytes() == b"x"


def test_file_grows_to_a_terabyte_of_nothing(place: Place) -> None:
    path = place / "a"
    path.touch()
    os.truncate(path, 1 << 40)
    assert path.stat().st_size == 1 << 40
    fd = _open(path, os.O_RDWR)
    try:
        assert os.pread(fd, 10, (1 << 40) - 5) == bytes(5)
        os.pwrite(fd, b"end", (1 << 40) - 3)
        os.fsync(fd)
        assert os.pread(fd, 10, (1 << 40) - 5) == b"\0\0end"
    finally:
        os.close(fd)
    assert path.stat().st_blocks * 512 < 1 * MIB


def test_no_file_is_larger_than_ext4_lets_it_be(place: Place) -> None:
    largest = (1 << 44) - 4096
    path = place / "a"
    path.write_bytes(b"content")
    fd = _open(path, os.O_RDWR)
    try:
        for size in (largest + 1, 1 << 44, (1 << 63) - 1):
            with fails(errno.EFBIG):
                os.ftruncate(fd, size)
            with fails(errno.EFBIG):
                os.truncate(path, size)
        for offset in (largest, largest + 1, 1 << 44, (1 << 63) - 2):
            with fails(errno.EFBIG):
                os.pwrite(fd, b"x", offset)
        assert os.fstat(fd).st_size == 7
        assert os.pwrite(fd, b"end and more", largest - 3) == 3, "what there is room for"
        assert os.pread(fd, 10, largest - 3) == b"end"
        with fails(errno.EFBIG):
            os.pwrite(fd, b"x", largest)
        os.ftruncate(fd, largest - 1)
        os.ftruncate(fd, largest)
        with (place / "a").open("ab", buffering=0) as stream, fails(errno.EFBIG):
            stream.write(b"x")
        os.fsync(fd)
        assert os.fstat(fd).st_size == largest
        assert os.pread(fd, 10, largest - 3) == b"en\0"
    finally:
        os.close(fd)


def test_direct_io(place: Place) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 64 * KIB)  # anonymous, so page-aligned as O_DIRECT asks
    try:
        buffer[:] = random.Random(3).randbytes(64 * KIB)
        assert os.pwritev(fd, [buffer], 64 * KIB) == 64 * KIB
        back = mmap.mmap(-1, 128 * KIB)
        assert os.preadv(fd, [back], 0) == 128 * KIB
        assert back[:] == bytes(64 * KIB) + buffer[:]
        assert (place / "a").read_bytes() == bytes(64 * KIB) + buffer[:]
    finally:
        os.close(fd)


def test_vectored_io(place: Place) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_RDWR)
    try:
        assert os.writev(fd, [b"one", b"", b"two" * 3000, b"three"]) == 9008
        buffers = [bytearray(3), bytearray(9000), bytearray(50)]
        assert os.preadv(fd, buffers, 0) == 9008
        assert buffers[0] == b"one"
        assert buffers[2][:5] == b"three"
    finally:
        os.close(fd)


def test_reopened_for_more_than_one_generation(place: Place) -> None:
    path = place / "a"
    want = b""
    for i in range(30):
        with path.open("ab") as stream:
            stream.write(bytes([i]) * (i * 100))
        want += bytes([i]) * (i * 100)
        assert path.stat().st_size == len(want)
    assert path.read_bytes() == want


def test_descriptor_outlives_a_chmod_to_nothing(place: Place) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_RDWR)
    try:
        os.fchmod(fd, 0)
        assert os.write(fd, b"still") == 5
        assert os.pread(fd, 5, 0) == b"still"
    finally:
        os.close(fd)


def test_lseek_knows_the_size(place: Place) -> None:
    fd = _open(place / "a", os.O_CREAT | os.O_RDWR)
    try:
        os.write(fd, b"x" * 12_345)
        assert os.lseek(fd, 0, os.SEEK_END) == 12_345
        assert os.lseek(fd, -45, os.SEEK_END) == 12_300
        with fails(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
    finally:
        os.close(fd)
