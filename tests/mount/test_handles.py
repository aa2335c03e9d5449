"""File handles as the kernel's NFS server keeps them: open_by_handle_at(2).

A handle must find its inode when the kernel has forgotten it, and when the daemon that gave
it is gone; and must not find another one.
"""

from __future__ import annotations

import errno
import os

import pytest

from tests.mount.conftest import Place
from tests.mount.mounted import Mount
from tests.mount.syscalls import FileHandle, fails, name_to_handle_at, open_by_handle_at

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root opens by handle")


def _content(place: Place, handle: FileHandle) -> bytes:
    fd = open_by_handle_at(place.path, handle)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def test_handle_follows_the_file_through_renames(place: Place) -> None:
    (place / "d").mkdir()
    (place / "f").write_bytes(b"content")
    handle = name_to_handle_at(place / "f")
    os.rename(place / "f", place / "d" / "g")
    assert _content(place, handle) == b"content"
    assert name_to_handle_at(place / "d" / "g") == handle


def test_handle_of_a_directory(place: Place) -> None:
    (place / "a" / "b").mkdir(parents=True)
    (place / "a" / "b" / "f").touch()
    handle = name_to_handle_at(place / "a" / "b")
    fd = open_by_handle_at(place.path, handle, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(fd) == ["f"]
        assert os.stat("..", dir_fd=fd).st_ino == (place / "a").stat().st_ino
    finally:
        os.close(fd)


def test_handle_of_a_removed_file_is_stale(place: Place) -> None:
    (place / "f").write_bytes(b"x")
    (place / "g").write_bytes(b"y")
    handle = name_to_handle_at(place / "f")
    other = name_to_handle_at(place / "g")
    os.unlink(place / "f")
    with fails(errno.ESTALE):
        _content(place, handle)
    for i in range(50):
        (place / f"new{i}").write_bytes(b"z")  # a number that is used again must not answer
    with fails(errno.ESTALE):
        _content(place, handle)
    assert _content(place, other) == b"y"


def test_handles_after_the_kernel_forgot(cafs_place: Place, cafs_mount: Mount) -> None:
    handles = _make_tree(cafs_place)
    cafs_mount.forget()
    _check_tree(cafs_place, handles)


def test_handles_after_a_restart(cafs_place: Place, cafs_mount: Mount) -> None:
    handles = _make_tree(cafs_place)
    cafs_mount.restart()
    _check_tree(cafs_place, handles)
    os.unlink(cafs_place / "a" / "b" / "f0")
    cafs_mount.restart()
    with fails(errno.ESTALE):
        _content(cafs_place, handles["a/b/f0"])


def test_handle_of_a_file_that_a_kill_took_finds_no_other() -> None:
    mount = Mount("--commit-interval", "1min")
    try:
        mount.start()
        (mount.root / "synced").touch()
        with (mount.root / "synced").open() as file:
            os.fsync(file.fileno())
        (mount.root / "mine").write_bytes(b"mine")
        handle = name_to_handle_at(mount.root / "mine")
        mount.kill()
        mount.start()
        assert os.listdir(mount.root) == ["synced"]
        for number in range(5):
            (mount.root / f"other{number}").write_bytes(b"somebody else's")
        with fails(errno.ESTALE):
            open_by_handle_at(mount.root, handle)
        last = (mount.root / "other4").stat().st_ino
        # An end in order passes over none, also if nothing was left to be committed.
        for number in range(2):
            with (mount.root / "other4").open() as file:
                os.fsync(file.fileno())
            mount.restart()
            (mount.root / f"next{number}").touch()
            assert (mount.root / f"next{number}").stat().st_ino == last + 1 + number
        mount.unmount()
        mount.run("check", str(mount.store))
    finally:
        mount.close()


def _make_tree(place: Place) -> dict[str, FileHandle]:
    (place / "a" / "b").mkdir(parents=True)
    for i in range(20):
        (place / "a" / "b" / f"f{i}").write_bytes(f"content {i}".encode())
    os.link(place / "a" / "b" / "f1", place / "second name")
    names = [f"a/b/f{i}" for i in range(20)] + ["a", "a/b", "second name"]
    return {name: name_to_handle_at(place / name) for name in names}


def _check_tree(place: Place, handles: dict[str, FileHandle]) -> None:
    for i in reversed(range(20)):
        assert _content(place, handles[f"a/b/f{i}"]) == f"content {i}".encode()
    assert handles["second name"] == handles["a/b/f1"]
    fd = open_by_handle_at(place.path, handles["a/b"], os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert len(os.listdir(fd)) == 20
        # A directory opened by handle is connected upwards, by lookups of "..".
        assert os.readlink(f"/proc/self/fd/{fd}") == str(place / "a" / "b")
    finally:
        os.close(fd)
    for name, handle in handles.items():
        assert name_to_handle_at(place / name) == handle
