"""Times: kept to the nanosecond, and changed by exactly the calls that should."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import RENAME_EXCHANGE, renameat2

OLD_NS = 1_000_000_000 * 10**9 + 123_456_789
COARSE_CLOCK = 5
"""CLOCK_REALTIME_COARSE of Linux, which the time module does not name."""
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_libc = ctypes.CDLL(None, use_errno=True)


def _past(path: Path) -> None:
    """Set atime and mtime into the past, and leave the clock tick that ctime fell into.

    The control's times come from a coarse clock: a change within one tick would not show.
    """
    os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    last = os.lstat(path).st_ctime_ns
    while time.clock_gettime_ns(COARSE_CLOCK) <= last:
        pass


def _times(path: Path) -> tuple[int, int, int]:
    status = os.lstat(path)
    return status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns


def _write(path: Path, data: bytes = b"new") -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, data)
    os.close(fd)


def _map(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 4) as view:
        view[0] ^= 0xFF
        view.flush()
    os.close(fd)


def _utimensat(path: Path, atime_ns: int, mtime_ns: int) -> None:
    """utimensat(2) with seconds of nothing but the special nanosecond values."""
    spec = (ctypes.c_long * 4)(0, atime_ns, 0, mtime_ns)
    assert _libc.utimensat(-100, os.fsencode(path), spec, 0) == 0, ctypes.get_errno()


# Each call, and which times it changes of the objects it is given: "f" is a file of four
# bytes in directory "p", "g" is another in "q", "l" a second name of "g" in "p", "d" an
# empty directory in "p".
CALLS: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "stat": (lambda b: os.stat(b / "p/f"), {}),
    "open and close": (lambda b: os.close(os.open(b / "p/f", os.O_RDWR | os.O_CREAT)), {}),
    "write": (lambda b: _write(b / "p/f"), {"p/f": "mc"}),
    "write of nothing": (lambda b: _write(b / "p/f", b""), {}),
    "write to a map": (lambda b: _map(b / "p/f"), {"p/f": "amc"}),
    "truncate": (lambda b: os.truncate(b / "p/f", 2), {"p/f": "mc"}),
    "truncate up": (lambda b: os.truncate(b / "p/f", 9), {"p/f": "mc"}),
    "truncate to the same size": (lambda b: os.truncate(b / "p/f", 4), {"p/f": "mc"}),
    "truncating open": (
        lambda b: os.close(os.open(b / "p/f", os.O_WRONLY | os.O_TRUNC)),
        {"p/f": "mc"},
    ),
    "chmod": (lambda b: os.chmod(b / "p/f", 0o600), {"p/f": "c"}),
    "chmod to the same": (lambda b: os.chmod(b / "p/f", 0o644), {"p/f": "c"}),
    "chown": (lambda b: os.chown(b / "p/f", os.geteuid(), -1), {"p/f": "c"}),
    "utime": (lambda b: os.utime(b / "p/f", ns=(5, 6)), {"p/f": "amc"}),
    "utime now": (lambda b: os.utime(b / "p/f"), {"p/f": "amc"}),
    "atime only": (lambda b: _utimensat(b / "p/f", 7, UTIME_OMIT), {"p/f": "ac"}),
    "mtime only": (lambda b: _utimensat(b / "p/f", UTIME_OMIT, 7), {"p/f": "mc"}),
    "mtime now only": (lambda b: _utimensat(b / "p/f", UTIME_OMIT, UTIME_NOW), {"p/f": "mc"}),
    "neither time": (lambda b: _utimensat(b / "p/f", UTIME_OMIT, UTIME_OMIT), {}),
    "setxattr": (lambda b: os.setxattr(b / "p/f", "user.x", b"1"), {"p/f": "c"}),
    "getxattr": (lambda b: os.getxattr(b / "q/g", "user.kept"), {}),
    "removexattr": (lambda b: os.removexattr(b / "q/g", "user.kept"), {"q/g": "c"}),
    "link": (lambda b: os.link(b / "p/f", b / "q/new"), {"p/f": "c", "q": "mc"}),
    "unlink": (lambda b: os.unlink(b / "p/l"), {"q/g": "c", "p": "mc"}),
    "rename": (lambda b: os.rename(b / "p/f", b / "p/new"), {"p/f": "c", "p": "mc"}),
    "rename elsewhere": (
        lambda b: os.rename(b / "p/f", b / "q/new"),
        {"p/f": "c", "p": "mc", "q": "mc"},
    ),
    "rename over": (
        lambda b: os.rename(b / "p/f", b / "p/l"),
        {"p/f": "c", "q/g": "c", "p": "mc"},
    ),
    "rename of a directory": (
        lambda b: os.rename(b / "p/d", b / "q/new"),
        {"p/d": "c", "p": "mc", "q": "mc"},
    ),
    "exchange": (
        lambda b: renameat2(b / "p/f", b / "q/g", RENAME_EXCHANGE),
        {"p/f": "c", "q/g": "c", "p": "mc", "q": "mc"},
    ),
    "rename to itself": (lambda b: os.rename(b / "p/f", b / "p/f"), {}),
    "create": (lambda b: (b / "q/new").write_bytes(b"x"), {"q": "mc"}),
    "mkdir": (lambda b: os.mkdir(b / "q/new"), {"q": "mc"}),
    "rmdir": (lambda b: os.rmdir(b / "p/d"), {"p": "mc"}),
    "symlink": (lambda b: os.symlink("x", b / "q/new"), {"q": "mc"}),
    "mkfifo": (lambda b: os.mkfifo(b / "q/new"), {"q": "mc"}),
    "lookup of what is missing": (lambda b: (b / "q/none").exists(), {}),
}


@pytest.mark.parametrize("call", CALLS)
def test_which_call_changes_which_times(place: Place, call: str) -> None:
    base = place.path
    for name in ("p", "q", "p/d"):
        (base / name).mkdir()
    (base / "p/f").write_bytes(b"1234")
    (base / "q/g").write_bytes(b"5678")
    os.setxattr(base / "q/g", "user.kept", b"v")
    os.link(base / "q/g", base / "p/l")
    watched = {name: os.open(base / name, os.O_PATH) for name in ("p/f", "q/g", "p/d", "p", "q")}
    try:
        for name in watched:
            _past(base / name)
        before = {name: os.fstat(fd) for name, fd in watched.items()}
        act, want = CALLS[call]
        act(base)
        got = {}
        for name, fd in watched.items():
            if call == "rmdir" and name == "p/d":
                continue
            after, old = os.fstat(fd), before[name]
            letters = "".join(
                letter
                for letter in "amc"
                if getattr(after, f"st_{letter}time_ns") != getattr(old, f"st_{letter}time_ns")
            )
            if letters:
                got[name] = letters
        assert got == want
    finally:
        for fd in watched.values():
            os.close(fd)


@pytest.mark.parametrize("make", ["file", "dir", "symlink", "fifo"])
def test_a_new_object_is_new_in_all_its_times(place: Place, make: str) -> None:
    _past(place.path)
    path = place / "new"
    before = time.clock_gettime_ns(COARSE_CLOCK)
    if make == "file":
        path.touch()
    elif make == "dir":
        path.mkdir()
    elif make == "symlink":
        path.symlink_to("x")
    else:
        os.mkfifo(path)
    after = time.time_ns()
    for value in _times(path):
        assert before <= value <= after


def test_time_of_a_change_is_the_time_of_the_change(place: Place) -> None:
    path = place / "f"
    path.touch()
    _past(path)
    before = time.clock_gettime_ns(COARSE_CLOCK)
    _write(path)
    after = time.time_ns()
    _, mtime, ctime = _times(path)
    assert before <= mtime <= after
    assert before <= ctime <= after
    # Closing, syncing and reading must not move them again.
    with path.open("rb") as stream:
        stream.read()
        os.fsync(stream.fileno())
    assert _times(path)[1:] == (mtime, ctime)


@pytest.mark.parametrize(
    "ns",
    [
        0,
        1,
        999_999_999,
        1_700_000_000 * 10**9 + 1,
        2**31 * 10**9,
        2**32 * 10**9 + 7,
        9 * 10**9 * 10**9 + 999_999_999,
        -1,
        -(10**9),
        -(10**9) * 1000 + 5,
    ],
)
def test_nanoseconds_are_kept(place: Place, ns: int) -> None:
    for name in ("f", "d"):
        path = place / name
        if name == "d":
            path.mkdir()
        else:
            path.write_bytes(b"x")
        os.utime(path, ns=(ns, ns + 1))
        assert _times(path)[:2] == (ns, ns + 1)
    (place / "l").symlink_to("f")
    os.utime(place / "l", ns=(ns, ns + 1), follow_symlinks=False)
    assert _times(place / "l")[:2] == (ns, ns + 1)


def test_times_beyond_what_can_be_kept_become_the_bound(place: Place) -> None:
    path = place / "f"
    path.touch()
    far = 10**11 * 10**9  # in the year 5138
    os.utime(path, ns=(far, far))
    atime, mtime, _ = _times(path)
    assert atime == mtime
    assert 9 * 10**18 < atime < far


def test_times_set_while_the_file_is_open_for_writing_stay(place: Place) -> None:
    # cp -p and tar set the times on the open descriptor, just before they close it.
    path = place / "f"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x" * 100_000)
    os.utime(fd, ns=(OLD_NS, OLD_NS + 5))
    os.close(fd)
    assert _times(path)[:2] == (OLD_NS, OLD_NS + 5)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    assert _times(path)[1] == OLD_NS + 5


READERS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.read_bytes(),
    "dir": lambda path: os.listdir(path),
    "symlink": lambda path: os.readlink(path),
}


@pytest.mark.parametrize("kind", READERS)
def test_atime_follows_relatime(place: Place, kind: str) -> None:
    """A first read after a change sets atime; another one within a day does not."""
    path = place / "x"
    if kind == "file":
        path.write_bytes(b"content")
    elif kind == "dir":
        path.mkdir()
        (path / "f").touch()
    else:
        path.symlink_to("target")
    read = READERS[kind]
    _past(path)
    read(path)
    first = _times(path)
    assert first[0] > OLD_NS
    assert first[1] == OLD_NS
    deadline = time.clock_gettime_ns(COARSE_CLOCK)
    while time.clock_gettime_ns(COARSE_CLOCK) <= max(deadline, *first):
        pass
    read(path)
    assert _times(path) == first


def test_atime_is_left_alone_by_o_noatime(place: Place) -> None:
    path = place / "f"
    path.write_bytes(b"x" * 10_000)
    _past(path)
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    assert os.read(fd, 20_000) == b"x" * 10_000
    os.close(fd)
    assert _times(path)[0] == OLD_NS
