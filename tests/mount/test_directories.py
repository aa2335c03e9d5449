"""Reading directories: all of them, while they change, and from a remembered position."""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import RawDirectory, fails

MANY = 10_000
VERY_MANY = 1_000_000


def _fill(path: Path, names: list[str]) -> None:
    """Make an empty file of each name, by descriptor so that a million take no longer paths."""
    at = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            os.mknod(name, stat.S_IFREG | 0o644, dir_fd=at)
    finally:
        os.close(at)


def _numbered(count: int) -> list[str]:
    return [f"entry-{i:07}" for i in range(count)]


def test_types_and_inode_numbers_are_those_of_stat(place: Place) -> None:
    (place / "file").touch()
    (place / "dir").mkdir()
    (place / "link").symlink_to("x")
    os.mkfifo(place / "fifo")
    with RawDirectory(place.path) as directory:
        entries = list(directory)
    assert sorted(e.name for e in entries) == [b"dir", b"fifo", b"file", b"link"]
    for entry in entries:
        status = os.lstat(place / os.fsdecode(entry.name))
        assert entry.ino == status.st_ino
        assert entry.type == status.st_mode >> 12


def test_dot_and_dotdot_come_once(place: Place) -> None:
    (place / "d").mkdir()
    with os.scandir(place / "d") as empty:
        assert list(empty) == []
    import ctypes

    class Dirent(ctypes.Structure):
        _fields_ = [
            ("ino", ctypes.c_uint64),
            ("off", ctypes.c_int64),
            ("reclen", ctypes.c_ushort),
            ("type", ctypes.c_ubyte),
            ("name", ctypes.c_char * 256),
        ]

    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(Dirent)
    handle = ctypes.c_void_p(libc.opendir(os.fsencode(place / "d")))
    seen = []
    while entry := libc.readdir(handle):
        seen.append((entry.contents.name, entry.contents.ino))
    libc.closedir(handle)
    here, above = (place / "d").stat().st_ino, place.path.stat().st_ino
    assert sorted(seen) == [(b".", here), (b"..", above)]


def test_many_entries_each_once(place: Place) -> None:
    names = _numbered(MANY)
    _fill(place.path, names)
    assert sorted(os.listdir(place.path)) == names
    with RawDirectory(place.path, 1024) as directory:
        entries = list(directory)
    assert sorted(os.fsdecode(e.name) for e in entries) == names
    assert len({e.ino for e in entries}) == len(names)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_very_many_entries_each_once(cafs_place: Place) -> None:
    names = _numbered(VERY_MANY)
    _fill(cafs_place.path, names)
    with RawDirectory(cafs_place.path, 1 << 20) as directory:
        seen = [os.fsdecode(e.name) for e in directory]
    assert len(seen) == VERY_MANY
    assert sorted(seen) == names
    for name in random.Random(1).sample(names, 1000):
        assert (cafs_place / name).stat().st_size == 0
    assert not (cafs_place / "entry-x").exists()


def test_cookies_are_positive_and_differ(place: Place) -> None:
    _fill(place.path, _numbered(2000))
    with RawDirectory(place.path) as directory:
        cookies = [e.cookie for e in directory]
    assert len(set(cookies)) == 2000
    assert all(0 < cookie <= 2**63 - 1 for cookie in cookies)


def test_seekdir_goes_on_after_any_entry(place: Place) -> None:
    _fill(place.path, _numbered(500))
    with RawDirectory(place.path) as directory:
        entries = list(directory)
        for at in (0, 1, 250, 498, 499):
            directory.seek(entries[at].cookie)
            assert [e.name for e in directory] == [e.name for e in entries[at + 1 :]]
        directory.seek(0)
        assert [e.name for e in directory] == [e.name for e in entries]
    with RawDirectory(place.path) as another:
        another.seek(entries[100].cookie)
        assert [e.name for e in another] == [e.name for e in entries[101:]]


def test_a_position_survives_the_removal_of_its_entry(place: Place) -> None:
    _fill(place.path, _numbered(500))
    with RawDirectory(place.path) as directory:
        entries = list(directory)
        for entry in entries[200:210]:
            os.unlink(place / os.fsdecode(entry.name))
        directory.seek(entries[204].cookie)
        assert [e.name for e in directory] == [e.name for e in entries[210:]]


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_what_was_there_throughout_comes_exactly_once(place: Place, seed: int) -> None:
    rng = random.Random(seed)
    stable = [f"stable-{i}" for i in range(1500)]
    fleeting = [f"fleeting-{i}" for i in range(1500)]
    both = stable + fleeting
    rng.shuffle(both)
    _fill(place.path, both)
    seen: list[str] = []
    made = 0
    with RawDirectory(place.path, 600) as directory:
        for entry in directory:
            seen.append(os.fsdecode(entry.name))
            for _ in range(2):
                if fleeting and rng.random() < 0.5:
                    os.unlink(place / fleeting.pop(rng.randrange(len(fleeting))))
                if rng.random() < 0.3:
                    (place / f"new-{made}").touch()
                    made += 1
                if fleeting and rng.random() < 0.2:
                    old = fleeting.pop(rng.randrange(len(fleeting)))
                    os.rename(place / old, place / f"new-{made}")
                    made += 1
    assert made > 100
    assert sorted(name for name in seen if name.startswith("stable")) == sorted(stable)
    assert len(seen) == len(set(seen))  # and nothing else comes twice either


def test_reading_again_from_the_start_sees_the_change(place: Place) -> None:
    (place / "a").touch()
    with RawDirectory(place.path) as directory:
        assert [e.name for e in directory] == [b"a"]
        (place / "b").touch()
        os.unlink(place / "a")
        directory.seek(0)
        assert [e.name for e in directory] == [b"b"]


def test_removing_all_while_reading(place: Place) -> None:
    names = _numbered(3000)
    _fill(place.path, names)
    with RawDirectory(place.path, 2048) as directory:
        for entry in directory:
            os.unlink(place / os.fsdecode(entry.name))
    assert os.listdir(place.path) == []


def test_two_readers_do_not_disturb_each_other(place: Place) -> None:
    names = _numbered(300)
    _fill(place.path, names)
    with RawDirectory(place.path, 300) as one, RawDirectory(place.path, 700) as two:
        pairs = list(zip(one, two, strict=True))
    assert [a.name for a, _ in pairs] == [b.name for _, b in pairs]
    assert sorted(os.fsdecode(a.name) for a, _ in pairs) == names


def test_size_and_links_of_directories(place: Place) -> None:
    directory = place / "d"
    directory.mkdir()
    assert directory.stat().st_nlink == 2
    assert directory.stat().st_size > 0
    for i in range(5):
        (directory / f"s{i}").mkdir()
        (directory / f"f{i}").touch()
    assert directory.stat().st_nlink == 7
    (directory / "s0").rmdir()
    assert directory.stat().st_nlink == 6


def test_read_and_write_of_a_directory_are_refused(place: Place) -> None:
    fd = os.open(place.path, os.O_RDONLY)
    try:
        with fails(errno.EISDIR):
            os.read(fd, 10)
    finally:
        os.close(fd)
    (place / "f").touch()
    with fails(errno.ENOTDIR):
        os.listdir(place / "f")
