"""What a restart must not change: everything that can be seen, and where a listing goes on."""

from __future__ import annotations

import contextlib
import os
import random
import stat
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mount.conftest import Place
from tests.mount.mounted import Mount
from tests.mount.syscalls import RawDirectory


class Seen(NamedTuple):
    """All of an object that can be asked for without changing it."""

    status: tuple[int, ...]
    content: bytes
    xattrs: dict[str, bytes]


def look(root: Path) -> dict[str, Seen]:
    """Everything below *root*, by path; inode numbers and times included."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files, "."]:
            path = Path(directory) / name
            s = os.lstat(path)
            times = (s.st_mtime_ns, s.st_ctime_ns)
            kind = stat.S_IFMT(s.st_mode)
            content = b""
            if kind == stat.S_IFREG:
                content = path.read_bytes()
            elif kind == stat.S_IFLNK:
                content = os.fsencode(os.readlink(path))
            attributes = os.listxattr(path, follow_symlinks=False)
            found[os.fsdecode(path.relative_to(root))] = Seen(
                (s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_size, *times),
                content,
                {a: os.getxattr(path, a, follow_symlinks=False) for a in attributes},
            )
    return found


def build(root: Path) -> None:
    """A small tree with one of everything."""
    rng = random.Random(9)
    for directory in ("a/b/c", "a/empty", "d"):
        (root / directory).mkdir(parents=True)
    for i, size in enumerate((0, 1, 100, 5000, 300_000, 2_000_000)):
        (root / "a" / f"f{i}").write_bytes(rng.randbytes(size))
    (root / "a" / "text").write_text("the same line again\n" * 50_000)
    (root / os.fsdecode(bytes(range(1, 256)).replace(b"/", b""))).write_bytes(b"odd name")
    os.link(root / "a" / "f3", root / "d" / "hard link")
    os.link(root / "a" / "f3", root / "a" / "b" / "c" / "another")
    (root / "link").symlink_to("a/f3")
    os.mkfifo(root / "fifo", 0o622)
    if os.geteuid() == 0:
        os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(root / "d", 4001, 4100)
        os.setxattr(root / "d", "trusted.t", b"\0\1")
    (root / "d").chmod(0o3770)
    (root / "a" / "f2").chmod(0o6751)
    os.setxattr(root / "a" / "f2", "user.key", b"value")
    with (root / "sparse").open("wb") as stream:
        stream.seek(10_000_000)
        stream.write(b"end")
    os.utime(root / "a" / "f1", ns=(1, 1_234_567_890_123_456_789))
    os.utime(root / "a" / "b", ns=(5, 987_654_321))
    os.utime(root / "link", ns=(7, 77), follow_symlinks=False)


def test_everything_survives_a_clean_restart(cafs_place: Place, cafs_mount: Mount) -> None:
    build(cafs_place.path)
    before = look(cafs_place.path)
    cafs_mount.restart()
    assert look(cafs_place.path) == before


def test_everything_synced_survives_a_kill(cafs_place: Place, cafs_mount: Mount) -> None:
    build(cafs_place.path)
    before = look(cafs_place.path)
    fd = os.open(cafs_place.path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    cafs_mount.kill()
    cafs_mount.start()
    assert look(cafs_place.path) == before


def test_a_renamed_file_survives_a_kill(cafs_place: Place, cafs_mount: Mount) -> None:
    data = random.Random(1).randbytes(1_500_000)
    (cafs_place / "tmp").write_bytes(data)
    os.rename(cafs_place / "tmp", cafs_place / "final")
    cafs_mount.kill()
    cafs_mount.start()
    assert (cafs_place / "final").read_bytes() == data
    assert not (cafs_place / "tmp").exists()


def test_a_listing_goes_on_after_a_restart(cafs_place: Place, cafs_mount: Mount) -> None:
    for i in range(700):
        (cafs_place / f"e{i}").touch()
    with RawDirectory(cafs_place.path) as directory:
        before = list(directory)
    cafs_mount.restart()
    with RawDirectory(cafs_place.path) as directory:
        for at in (0, 123, 698):
            directory.seek(before[at].cookie)
            assert list(directory) == before[at + 1 :]


def test_numbers_are_not_given_again(cafs_place: Place, cafs_mount: Mount) -> None:
    gone = set()
    for i in range(20):
        (cafs_place / f"f{i}").touch()
        gone.add((cafs_place / f"f{i}").stat().st_ino)
        os.unlink(cafs_place / f"f{i}")
    cafs_mount.restart()
    for i in range(20):
        (cafs_place / f"f{i}").touch()
        assert (cafs_place / f"f{i}").stat().st_ino not in gone


@pytest.mark.parametrize("end", ["clean", "kill"])
def test_unlinked_open_files_are_gone_and_nothing_of_them_counts(
    cafs_place: Place, cafs_mount: Mount, end: str
) -> None:
    before = os.statvfs(cafs_place.path)
    fd = os.open(cafs_place / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 100_000)
    os.unlink(cafs_place / "f")
    os.fsync(fd)
    if end == "kill":
        cafs_mount.kill()
        with contextlib.suppress(OSError):
            os.close(fd)  # it is closed all the same; ENOTCONN only says who did not hear of it
        cafs_mount.start()
    else:
        os.close(fd)
        cafs_mount.restart()
    after = os.statvfs(cafs_place.path)
    assert after.f_files - after.f_ffree == before.f_files - before.f_ffree
    assert os.listdir(cafs_place.path) == []


def test_the_mount_serves_after_many_restarts(cafs_place: Place, cafs_mount: Mount) -> None:
    for i in range(3):
        (cafs_place / f"f{i}").write_bytes(b"%d" % i)
        cafs_mount.restart()
    assert [(cafs_place / f"f{i}").read_bytes() for i in range(3)] == [b"0", b"1", b"2"]
