"""Names: any bytes, their limits, and every call that meets a bad one."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import fails


def _calls(path: Path, other: Path) -> dict[str, Callable[[], object]]:
    """Every call that takes a path, aimed at *path*; *other* is free and in a good place."""
    return {
        "open": lambda: os.open(path, os.O_RDONLY),
        "create": lambda: os.open(path, os.O_CREAT | os.O_WRONLY),
        "stat": lambda: os.stat(path),
        "lstat": lambda: os.lstat(path),
        "mkdir": lambda: os.mkdir(path),
        "rmdir": lambda: os.rmdir(path),
        "unlink": lambda: os.unlink(path),
        "rename from": lambda: os.rename(path, other),
        "rename to": lambda: os.rename(other.with_name("there"), path),
        "link from": lambda: os.link(path, other),
        "link to": lambda: os.link(other.with_name("there"), path),
        "symlink": lambda: os.symlink("x", path),
        "readlink": lambda: os.readlink(path),
        "mkfifo": lambda: os.mkfifo(path),
        "chmod": lambda: os.chmod(path, 0o600),
        "chown": lambda: os.chown(path, 1, 1),
        "lchown": lambda: os.lchown(path, 1, 1),
        "truncate": lambda: os.truncate(path, 0),
        "utime": lambda: os.utime(path),
        "access": lambda: os.stat(path) and os.access(path, os.F_OK),
        "statvfs": lambda: os.statvfs(path),
        "setxattr": lambda: os.setxattr(path, "user.x", b""),
        "getxattr": lambda: os.getxattr(path, "user.x"),
        "listxattr": lambda: os.listxattr(path),
        "removexattr": lambda: os.removexattr(path, "user.x"),
        "opendir": lambda: os.listdir(path),
    }


CALLS = sorted(_calls(Path(), Path("/x")))


@pytest.mark.parametrize("call", CALLS)
def test_a_file_in_the_middle_of_a_path(place: Place, call: str) -> None:
    (place / "file").touch()
    (place / "there").touch()
    with fails(errno.ENOTDIR):
        _calls(place / "file" / "x", place / "free")[call]()


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_directory_in_a_path(place: Place, call: str) -> None:
    (place / "there").touch()
    with fails(errno.ENOENT):
        _calls(place / "missing" / "x", place / "free")[call]()


@pytest.mark.parametrize("call", CALLS)
def test_a_name_of_256_bytes(place: Place, call: str) -> None:
    (place / "there").touch()
    with fails(errno.ENAMETOOLONG):
        _calls(place / ("n" * 256), place / "free")[call]()


@pytest.mark.parametrize("call", CALLS)
def test_a_path_of_more_than_4095_bytes(place: Place, call: str) -> None:
    (place / "there").touch()
    with fails(errno.ENAMETOOLONG):
        _calls(place.path / "/".join("d" * 200 for _ in range(21)), place / "free")[call]()


@pytest.mark.parametrize("call", CALLS)
def test_a_loop_of_symlinks_in_a_path(place: Place, call: str) -> None:
    (place / "there").touch()
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with fails(errno.ELOOP):
        _calls(place / "a" / "x", place / "free")[call]()


def test_names_of_255_arbitrary_bytes(place: Place) -> None:
    rng = random.Random(5)
    alphabet = bytes(b for b in range(1, 256) if b != ord("/"))
    root = os.fsencode(place.path)
    names = [bytes(rng.choices(alphabet, k=255)) for _ in range(40)]
    names += [bytes([b]) for b in alphabet if b != ord(".")]
    names += [b"...", b"-rf", b" " * 9, b"\xff" * 255, "ä".encode(), "a\u0308".encode()]
    for i, name in enumerate(names):
        Path(os.fsdecode(root + b"/" + name)).write_bytes(str(i).encode())
    assert sorted(os.listdir(root)) == sorted(names)
    for i, name in enumerate(names):
        assert Path(os.fsdecode(root + b"/" + name)).read_bytes() == str(i).encode()
    for name in names:
        os.unlink(root + b"/" + name)
    assert os.listdir(root) == []


def test_names_differ_by_case_and_by_normal_form(place: Place) -> None:
    names = ["readme", "README", "ReadMe", "\u00e4", "a\u0308"]
    for name in names:
        (place / name).write_text(name)
    assert sorted(os.listdir(place.path)) == sorted(names)
    assert [(place / name).read_text() for name in names] == names


def test_the_deepest_path(place: Place) -> None:
    # Deeper than PATH_MAX by relative steps: nothing in the tree may assume a bound.
    fds = [os.open(place.path, os.O_RDONLY)]
    for i in range(60):
        os.mkdir(f"{i:0>200}", dir_fd=fds[-1])
        fds.append(os.open(f"{i:0>200}", os.O_RDONLY, dir_fd=fds[-1]))
    os.close(os.open("end", os.O_CREAT | os.O_WRONLY, dir_fd=fds[-1]))
    os.unlink("end", dir_fd=fds[-1])
    for i in reversed(range(60)):
        os.close(fds.pop())
        os.rmdir(f"{i:0>200}", dir_fd=fds[-1])
    os.close(fds.pop())


def test_dot_and_dotdot(place: Place) -> None:
    (place / "d").mkdir()
    inside = os.fspath(place / "d")
    assert os.stat(inside + "/.").st_ino == os.stat(inside).st_ino
    assert os.stat(inside + "/..").st_ino == place.path.stat().st_ino
    for name in (".", ".."):
        with fails(errno.EEXIST):
            os.mkdir(f"{inside}/{name}")
    assert os.listdir(inside) == []


def test_trailing_slashes(place: Place) -> None:
    (place / "f").touch()
    file, new = os.fspath(place / "f"), os.fspath(place / "new")
    os.mkdir(new + "/")
    os.rename(new + "/", new + "2/")
    os.rmdir(new + "2/")
    with fails(errno.ENOTDIR):
        os.stat(file + "/")
    with fails(errno.ENOTDIR):
        os.unlink(file + "/")
    with fails(errno.EISDIR):
        os.open(new + "/", os.O_CREAT | os.O_WRONLY)


def test_a_negative_answer_does_not_outlive_the_creation(place: Place) -> None:
    for i in range(30):
        path = place / f"n{i}"
        assert not path.exists()
        assert not path.exists()  # the second answer is the kernel's own
        path.touch()
        assert path.exists()
        os.rename(path, place / "elsewhere")
        assert not path.exists()
        os.rename(place / "elsewhere", path)
        assert path.exists()
        path.unlink()
        assert not path.exists()
