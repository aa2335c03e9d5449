"""Hard links, symbolic links, special files, and what is removed while somebody has it."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import as_user, fails

LINK_MAX = 65_000
"""ext4's, and so that of the mount."""


def test_hard_links_share_everything(place: Place) -> None:
    (place / "d").mkdir()
    (place / "a").write_bytes(b"one")
    os.link(place / "a", place / "d" / "b")
    a, b = (place / "a").stat(), (place / "d" / "b").stat()
    assert (a.st_ino, a.st_nlink) == (b.st_ino, b.st_nlink) == (a.st_ino, 2)
    (place / "d" / "b").write_bytes(b"other content")
    os.chmod(place / "a", 0o600)
    assert (place / "a").read_bytes() == b"other content"
    assert (place / "d" / "b").stat().st_mode == (place / "a").stat().st_mode
    os.unlink(place / "a")
    assert (place / "d" / "b").stat().st_nlink == 1
    assert (place / "d" / "b").read_bytes() == b"other content"


def test_link_of_every_type_but_directories(place: Place) -> None:
    (place / "t").touch()
    (place / "l").symlink_to("t")
    os.mkfifo(place / "p")
    for name in ("t", "l", "p"):
        os.link(place / name, place / f"{name}2", follow_symlinks=False)
        one, two = os.lstat(place / name), os.lstat(place / f"{name}2")
        assert (one.st_ino, one.st_mode, 2) == (two.st_ino, two.st_mode, two.st_nlink)
    (place / "d").mkdir()
    with fails(errno.EPERM):
        os.link(place / "d", place / "d2")


def test_link_refusals(place: Place) -> None:
    (place / "a").touch()
    (place / "b").touch()
    with fails(errno.EEXIST):
        os.link(place / "a", place / "b")
    with fails(errno.ENOENT):
        os.link(place / "missing", place / "c")
    with fails(errno.ENOENT):
        os.link(place / "a", place / "missing" / "c")
    with fails(errno.ENOTDIR):
        os.link(place / "a", place / "b" / "c")
    with fails(errno.ENAMETOOLONG):
        os.link(place / "a", place / ("x" * 256))
    assert (place / "a").stat().st_nlink == 1


def test_link_by_descriptor(place: Place) -> None:
    (place / "a").write_bytes(b"x")
    fd = os.open(place / "a", os.O_RDONLY)
    try:
        # Only with a directory descriptor does Python ask linkat(2) to follow the link.
        os.link(f"/proc/self/fd/{fd}", place / "b", src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)
    assert (place / "b").stat().st_ino == (place / "a").stat().st_ino


def test_link_from_any_directory_to_any_other(place: Place) -> None:
    previous = place / "start"
    previous.write_bytes(b"x")
    for i in range(20):
        directory = place.path / "deep" / "/".join(str(j) for j in range(i + 1))
        directory.mkdir(parents=True)
        os.link(previous, directory / "link")
        previous = directory / "link"
    assert (place / "start").stat().st_nlink == 21


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_too_many_links(place: Place) -> None:
    (place / "a").touch()
    for i in range(1, LINK_MAX):
        os.link(place / "a", place / str(i))
    with fails(errno.EMLINK):
        os.link(place / "a", place / "one too many")
    assert (place / "a").stat().st_nlink == LINK_MAX
    os.unlink(place / "1")
    os.link(place / "a", place / "one too many")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_directory_with_more_subdirectories_than_links(place: Place) -> None:
    # ext4 stops counting at 65,000 and says 1 from there on ("unknown", as find(1) reads it).
    for i in range(LINK_MAX + 10):
        (place / str(i)).mkdir()
    assert len(os.listdir(place.path)) == LINK_MAX + 10
    assert place.path.stat().st_nlink in (1, LINK_MAX + 12)


@pytest.mark.parametrize("length", [1, 59, 60, 255, 1000, 4095])
def test_symlink_targets(place: Place, length: int) -> None:
    target = ("x" * 200 + "/") * 20 + "x" * 200
    target = target[:length]
    os.symlink(target, place / "l")
    status = os.lstat(place / "l")
    assert os.readlink(place / "l") == target
    assert (status.st_size, stat.S_IFMT(status.st_mode)) == (length, stat.S_IFLNK)
    assert stat.S_IMODE(status.st_mode) == 0o777


def test_symlink_refusals(place: Place) -> None:
    (place / "a").touch()
    with fails(errno.EEXIST):
        os.symlink("x", place / "a")
    with fails(errno.ENOENT):
        os.symlink("", place / "b")
    with fails(errno.ENAMETOOLONG):
        os.symlink("x" * 4096, place / "b")
    with fails(errno.ENAMETOOLONG):
        os.symlink("x", place / ("b" * 256))
    with fails(errno.EINVAL):
        os.readlink(place / "a")


def test_symlink_target_is_bytes(place: Place) -> None:
    target = bytes(range(1, 256)).replace(b"/", b"")
    os.symlink(target, os.fsencode(place / "l"))
    assert os.readlink(os.fsencode(place / "l")) == target


def test_symlinks_are_followed_and_loops_end(place: Place) -> None:
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"through")
    (place / "l").symlink_to("d")
    (place / "m").symlink_to(place / "l")
    assert (place / "m" / "f").read_bytes() == b"through"
    (place / "x").symlink_to("y")
    (place / "y").symlink_to("x")
    with fails(errno.ELOOP):
        os.stat(place / "x")
    with fails(errno.ELOOP):
        os.open(place / "x" / "f", os.O_RDONLY)


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFBLK, os.makedev(7, 255)),
        (stat.S_IFCHR, os.makedev(4095, 1_048_575)),
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFREG, 0),
    ],
)
def test_special_files(place: Place, kind: int, device: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes device nodes")
    os.mknod(place / "n", kind | 0o640, device)
    status = os.lstat(place / "n")
    assert (status.st_mode, status.st_nlink, status.st_size) == (kind | 0o640, 1, 0)
    if device:
        assert status.st_rdev == device
    with fails(errno.EEXIST):
        os.mknod(place / "n", kind | 0o640, device)


def test_device_nodes_are_for_root(place: Place) -> None:
    place.path.chmod(0o777)
    with fails(errno.EPERM):
        as_user(4001, lambda: os.mknod(place / "n", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    as_user(4001, lambda: os.mkfifo(place / "p"))
    assert (place / "p").stat().st_uid == 4001


def test_device_node_works(place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes device nodes")
    os.mknod(place / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    fd = os.open(place / "zero", os.O_RDONLY)
    try:
        assert os.read(fd, 5) == bytes(5)
    finally:
        os.close(fd)


def test_fifo_carries_bytes(place: Place) -> None:
    os.mkfifo(place / "p")
    reader = os.open(place / "p", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(place / "p", os.O_WRONLY)
    try:
        os.write(writer, b"through")
        assert select.select([reader], [], [], 10)[0] == [reader]
        assert os.read(reader, 10) == b"through"
    finally:
        os.close(reader)
        os.close(writer)
    with fails(errno.ENXIO):
        os.open(place / "p", os.O_WRONLY | os.O_NONBLOCK)


def test_socket_is_bound_and_reached(place: Place) -> None:
    path = str(place / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        assert stat.S_ISSOCK(os.lstat(path).st_mode)
        server.listen()
        client.connect(path)
        with socket.socket(socket.AF_UNIX) as again, fails(errno.EADDRINUSE):
            again.bind(path)
    with socket.socket(socket.AF_UNIX) as late, fails(errno.ECONNREFUSED):
        late.connect(path)


def test_unlinked_file_lives_until_it_is_closed(place: Place) -> None:
    fd = os.open(place / "a", os.O_CREAT | os.O_RDWR)
    try:
        os.write(fd, b"before")
        os.unlink(place / "a")
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_size) == (0, 6)
        os.pwrite(fd, b"after" * 50_000, 3)
        os.ftruncate(fd, 200_000)
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        assert os.pread(fd, 10, 0) == b"befafteraf"
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        with fails(errno.ENOENT):
            os.stat(place / "a")
        (place / "a").write_bytes(b"another")
        assert os.fstat(fd).st_ino != (place / "a").stat().st_ino
        assert os.pread(fd, 3, 0) == b"bef"
    finally:
        os.close(fd)


def test_unlinked_file_reopened_through_proc(place: Place) -> None:
    fd = os.open(place / "a", os.O_CREAT | os.O_RDWR)
    try:
        os.write(fd, b"x" * 10_000)
        os.unlink(place / "a")
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            os.close(fd)
            assert os.pread(again, 20_000, 0) == b"x" * 10_000
            os.pwrite(again, b"y", 0)
        finally:
            fd, again = again, -1
    finally:
        os.close(fd)


def test_removed_directory_that_is_somebodys_own(place: Place) -> None:
    (place / "d").mkdir()
    fd = os.open(place / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rmdir(place / "d")
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
        with fails(errno.ENOENT):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        with fails(errno.ENOENT):
            os.mkdir("new", dir_fd=fd)
        (place / "d").mkdir()
        assert (place / "d").stat().st_ino != os.fstat(fd).st_ino
    finally:
        os.close(fd)


def test_unlink_and_rmdir_refusals(place: Place) -> None:
    (place / "f").touch()
    (place / "d" / "sub").mkdir(parents=True)
    with fails(errno.EISDIR, errno.EPERM):
        os.unlink(place / "d")
    with fails(errno.ENOTDIR):
        os.rmdir(place / "f")
    with fails(errno.ENOTEMPTY):
        os.rmdir(place / "d")
    with fails(errno.EINVAL):
        os.rmdir(str(place / "d" / "sub") + "/.")
    with fails(errno.ENOTEMPTY, errno.EINVAL):
        os.rmdir(str(place / "d" / "sub") + "/..")
    for call in (os.unlink, os.rmdir):
        with fails(errno.ENOENT):
            call(place / "missing")
        with fails(errno.ENOTDIR):
            call(place / "f" / "x")


def test_working_directory_removed(place: Place) -> None:
    (place / "d").mkdir()
    child = os.fork()
    if child == 0:
        os.chdir(place / "d")
        os.rmdir(place / "d")
        try:
            Path("x").touch()
        except FileNotFoundError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_mountpoint_is_busy(place: Place) -> None:
    if not place.is_cafs:
        pytest.skip("a plain directory is no mountpoint")
    with fails(errno.EBUSY):
        os.rmdir(place.path.parent)
    with fails(errno.EBUSY):
        os.rename(place.path.parent, place.path.parent.with_name("elsewhere"))
