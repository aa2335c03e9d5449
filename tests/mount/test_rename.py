"""rename(2) and renameat2(2): what moves, what gives way, what is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    as_user,
    fails,
    outcome,
    renameat2,
)


def test_file_moves_with_its_inode(place: Place) -> None:
    (place / "d").mkdir()
    (place / "a").write_bytes(b"content")
    ino = (place / "a").stat().st_ino
    os.rename(place / "a", place / "d" / "b")
    assert not (place / "a").exists()
    assert (place / "d" / "b").stat().st_ino == ino
    assert (place / "d" / "b").read_bytes() == b"content"


def test_replaced_file_lives_on_for_who_has_it_open(place: Place) -> None:
    (place / "new").write_bytes(b"new")
    (place / "old").write_bytes(b"old")
    os.link(place / "old", place / "other")
    held = os.open(place / "old", os.O_RDONLY)
    try:
        os.rename(place / "new", place / "old")
        assert (place / "old").read_bytes() == b"new"
        assert os.pread(held, 10, 0) == b"old"
        assert os.fstat(held).st_nlink == 1
        assert (place / "other").read_bytes() == b"old"
    finally:
        os.close(held)


def test_written_and_renamed_while_open(place: Place) -> None:
    fd = os.open(place / "tmp", os.O_CREAT | os.O_RDWR)
    try:
        os.write(fd, b"a" * 100_000)
        os.rename(place / "tmp", place / "final")
        os.write(fd, b"b" * 100_000)
        assert (place / "final").stat().st_size == 200_000
    finally:
        os.close(fd)
    assert (place / "final").read_bytes() == b"a" * 100_000 + b"b" * 100_000


def test_directory_moves_with_what_it_holds(place: Place) -> None:
    (place / "a" / "sub").mkdir(parents=True)
    (place / "b").mkdir()
    (place / "a" / "sub" / "f").write_bytes(b"x")
    os.rename(place / "a" / "sub", place / "b" / "moved")
    assert (place / "b" / "moved" / "f").read_bytes() == b"x"
    above = os.stat(place / "b" / "moved" / "..").st_ino
    assert above == (place / "b").stat().st_ino
    assert ((place / "a").stat().st_nlink, (place / "b").stat().st_nlink) == (2, 3)


def test_directory_replaces_an_empty_directory_only(place: Place) -> None:
    for name in ("src", "empty", "full"):
        (place / name).mkdir()
    (place / "full" / "x").touch()
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(place / "src", place / "full")
    ino = (place / "src").stat().st_ino
    os.rename(place / "src", place / "empty")
    assert (place / "empty").stat().st_ino == ino
    assert sorted(os.listdir(place.path)) == ["empty", "full"]


def test_two_names_of_one_file_stay_both(place: Place) -> None:
    (place / "a").write_bytes(b"x")
    os.link(place / "a", place / "b")
    os.rename(place / "a", place / "b")
    assert sorted(os.listdir(place.path)) == ["a", "b"]
    os.rename(place / "a", place / "a")
    assert (place / "a").stat().st_nlink == 2


def test_link_counts_of_parents_follow(place: Place) -> None:
    for name in ("p", "q", "p/d", "q/d"):
        (place / name).mkdir()
    os.rename(place / "p" / "d", place / "q" / "d")
    assert (place / "p").stat().st_nlink == 2
    assert (place / "q").stat().st_nlink == 3
    assert place.path.stat().st_nlink == 4


def test_refusals(place: Place) -> None:
    (place / "f").touch()
    (place / "d" / "sub").mkdir(parents=True)
    (place / "e").mkdir()
    with fails(errno.ENOENT):
        os.rename(place / "missing", place / "x")
    with fails(errno.ENOENT):
        os.rename(place / "f", place / "missing" / "x")
    with fails(errno.ENOTDIR):
        os.rename(place / "f", place / "f" / "x")
    with fails(errno.ENOTDIR):
        os.rename(place / "d", place / "f")
    with fails(errno.EISDIR):
        os.rename(place / "f", place / "e")
    with fails(errno.EINVAL):
        os.rename(place / "d", place / "d" / "sub" / "x")
    with fails(errno.EINVAL):
        os.rename(place / "d", place / "d" / "x")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(place / "d" / "sub", place / "d")
    with fails(errno.EBUSY, errno.EINVAL):
        os.rename(str(place / "d") + "/.", place / "x")
    with fails(errno.ENAMETOOLONG):
        os.rename(place / "f", place / ("n" * 256))
    assert sorted(os.listdir(place.path)) == ["d", "e", "f"]


def test_symlink_itself_is_renamed(place: Place) -> None:
    (place / "t").write_bytes(b"x")
    (place / "l").symlink_to("t")
    os.rename(place / "l", place / "m")
    assert os.readlink(place / "m") == "t"
    os.rename(place / "m", place / "t")  # a link may replace its own target
    assert os.readlink(place / "t") == "t"


def test_noreplace(place: Place) -> None:
    (place / "a").write_bytes(b"a")
    (place / "b").write_bytes(b"b")
    with fails(errno.EEXIST):
        renameat2(place / "a", place / "b", RENAME_NOREPLACE)
    assert (place / "b").read_bytes() == b"b"
    renameat2(place / "a", place / "c", RENAME_NOREPLACE)
    assert (place / "c").read_bytes() == b"a"


def test_exchange_files(place: Place) -> None:
    (place / "d").mkdir()
    (place / "a").write_bytes(b"a")
    (place / "d" / "b").write_bytes(b"b")
    inos = (place / "a").stat().st_ino, (place / "d" / "b").stat().st_ino
    renameat2(place / "a", place / "d" / "b", RENAME_EXCHANGE)
    assert (place / "a").read_bytes() == b"b"
    assert (place / "d" / "b").read_bytes() == b"a"
    assert ((place / "d" / "b").stat().st_ino, (place / "a").stat().st_ino) == inos


def test_exchange_file_and_directory(place: Place) -> None:
    for name in ("p", "q", "p/dir"):
        (place / name).mkdir()
    (place / "p" / "dir" / "inside").write_bytes(b"x")
    (place / "q" / "file").write_bytes(b"y")
    renameat2(place / "p" / "dir", place / "q" / "file", RENAME_EXCHANGE)
    assert (place / "p" / "dir").read_bytes() == b"y"
    assert (place / "q" / "file" / "inside").read_bytes() == b"x"
    assert ((place / "p").stat().st_nlink, (place / "q").stat().st_nlink) == (2, 3)
    assert os.stat(place / "q" / "file" / "..").st_ino == (place / "q").stat().st_ino


def test_exchange_full_directories_of_one_parent(place: Place) -> None:
    for name in ("a", "b"):
        (place / name).mkdir()
        (place / name / f"in-{name}").touch()
    renameat2(place / "a", place / "b", RENAME_EXCHANGE)
    assert os.listdir(place / "a") == ["in-b"]
    assert os.listdir(place / "b") == ["in-a"]


def test_exchange_refusals(place: Place) -> None:
    (place / "a" / "below").mkdir(parents=True)
    with fails(errno.ENOENT):
        renameat2(place / "a", place / "missing", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(place / "a", place / "a" / "below", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(place / "a", place / "b", RENAME_EXCHANGE | RENAME_NOREPLACE)
    with fails(errno.EINVAL):
        renameat2(place / "a", place / "b", 1 << 10)


def test_another_filesystem_is_refused(place: Place) -> None:
    (place / "a").touch()
    other = Path("/dev/shm") / f"cafs-exdev-{os.getpid()}"
    with fails(errno.EXDEV):
        os.rename(place / "a", other)
    with fails(errno.EXDEV):
        os.link(place / "a", other)


@pytest.mark.parametrize("owner", ["file", "directory", "none"])
def test_sticky_directory_protects_what_others_own(place: Place, owner: str) -> None:
    me, someone = 4001, 4002
    sticky, free = place / "sticky", place / "free"
    for directory in (sticky, free):
        directory.mkdir()
        directory.chmod(0o1777 if directory is sticky else 0o777)
    os.chown(sticky, me if owner == "directory" else someone, 0)
    (sticky / "f").touch()
    os.chown(sticky / "f", me if owner == "file" else someone, 0)
    (free / "mine").touch()
    os.chown(free / "mine", me, 0)
    want = "EPERM" if owner == "none" else "ok"

    def act() -> list[str]:
        return [
            outcome(lambda: os.rename(free / "mine", sticky / "f")),
            outcome(lambda: os.rename(sticky / "f", free / "out")),
        ]

    # Replacing needs the right to remove the target; after it, the file there is one's own.
    assert as_user(me, act) == ([want, want] if owner == "none" else ["ok", "ok"])


def test_someone_elses_directory_cannot_change_its_parent(place: Place) -> None:
    # Moving a directory rewrites its "..", so the kernel wants it writable.
    for name in ("from", "to"):
        (place / name).mkdir()
        (place / name).chmod(0o777)
    (place / "from" / "theirs").mkdir(0o755)

    def act() -> list[str]:
        return [
            outcome(lambda: os.rename(place / "from" / "theirs", place / "to" / "x")),
            outcome(lambda: os.rename(place / "from" / "theirs", place / "from" / "x")),
        ]

    assert as_user(4001, act) == ["EACCES", "ok"]
