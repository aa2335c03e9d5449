"""Extended attributes: namespaces, limits, flags, and who sees which."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import as_user, fails

ME = 4001
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sets these")


def _own(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def test_set_get_list_remove(place: Place) -> None:
    path = place / "f"
    path.touch()
    assert _own(path) == []
    os.setxattr(path, "user.a", b"one")
    os.setxattr(path, "user.b", b"")
    os.setxattr(path, "user.a", b"\0binary\xff")
    assert _own(path) == ["user.a", "user.b"]
    assert os.getxattr(path, "user.a") == b"\0binary\xff"
    assert os.getxattr(path, "user.b") == b""
    os.removexattr(path, "user.a")
    assert _own(path) == ["user.b"]


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_each_object_has_its_own(place: Place, kind: str) -> None:
    for name in ("x", "y"):
        (place / name).mkdir() if kind == "dir" else (place / name).touch()
        os.setxattr(place / name, "user.name", name.encode())
    os.rename(place / "x", place / "z")
    assert os.getxattr(place / "z", "user.name") == b"x"
    assert os.getxattr(place / "y", "user.name") == b"y"


def test_hard_links_share_and_new_files_start_without(place: Place) -> None:
    (place / "f").touch()
    os.link(place / "f", place / "g")
    os.setxattr(place / "g", "user.a", b"1")
    assert os.getxattr(place / "f", "user.a") == b"1"
    for name in ("f", "g"):
        os.unlink(place / name)
    (place / "f").touch()
    assert _own(place / "f") == []


def test_missing_ones(place: Place) -> None:
    path = place / "f"
    path.touch()
    with fails(errno.ENODATA):
        os.getxattr(path, "user.none")
    with fails(errno.ENODATA):
        os.removexattr(path, "user.none")


def test_create_and_replace_flags(place: Place) -> None:
    path = place / "f"
    path.touch()
    with fails(errno.ENODATA):
        os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    assert os.getxattr(path, "user.a") == b"1"
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"


@pytest.mark.parametrize("size", [0, 1, 255, 1024, 3000])
def test_values_of_every_size_that_ext4_takes(place: Place, size: int) -> None:
    path = place / "f"
    path.touch()
    value = bytes(i % 251 for i in range(size))
    os.setxattr(path, "user.v", value)
    assert os.getxattr(path, "user.v") == value


def test_a_value_of_more_than_64_kib(place: Place) -> None:
    (place / "f").touch()
    with fails(errno.E2BIG):
        os.setxattr(place / "f", "user.v", bytes(65_537))
    assert _own(place / "f") == []


def test_a_value_beyond_the_limit_of_ext4(place: Place) -> None:
    path = place / "f"
    path.touch()
    os.setxattr(path, "user.v", b"before")
    with fails(errno.ENOSPC, errno.E2BIG):
        os.setxattr(path, "user.v", bytes(65_536))
    assert os.getxattr(path, "user.v") == b"before"


def test_a_name_of_255_bytes_and_one_of_256(place: Place) -> None:
    path = os.fsencode(place / "f")
    Path(os.fsdecode(path)).touch()
    longest = b"user." + bytes(range(1, 251))
    os.setxattr(path, longest, b"v")
    assert os.getxattr(path, longest) == b"v"
    assert os.listxattr(path) == [os.fsdecode(longest)]
    with fails(errno.ERANGE):
        os.setxattr(path, longest + b"x", b"v")


def test_a_buffer_that_is_too_small(place: Place) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(place / "f")
    (place / "f").touch()
    os.setxattr(path, "user.v", b"12345")
    buffer = ctypes.create_string_buffer(100)
    assert libc.getxattr(path, b"user.v", buffer, 4) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(path, b"user.v", None, 0) == 5
    assert libc.getxattr(path, b"user.v", buffer, 5) == 5
    assert libc.listxattr(path, buffer, 3) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.listxattr(path, None, 0) == 7


def test_namespaces_that_do_not_exist(place: Place) -> None:
    (place / "f").touch()
    for name in ("bogus.x", "plain", "system.nothing", "user"):
        with fails(errno.EOPNOTSUPP):
            os.setxattr(place / "f", name, b"v")
        with fails(errno.EOPNOTSUPP):
            os.getxattr(place / "f", name)
        with fails(errno.EOPNOTSUPP):
            os.removexattr(place / "f", name)
    for name in ("user.", "trusted."):
        with fails(errno.EINVAL):
            os.setxattr(place / "f", name, b"v")
    assert _own(place / "f") == []


@needs_root
def test_user_attributes_are_for_files_and_directories(place: Place) -> None:
    os.mkfifo(place / "p")
    (place / "l").symlink_to("p")
    for name in ("p", "l"):
        with fails(errno.EPERM):
            os.setxattr(place / name, "user.a", b"1", follow_symlinks=False)
        with fails(errno.ENODATA):
            os.getxattr(place / name, "user.a", follow_symlinks=False)
        os.setxattr(place / name, "trusted.a", b"1", follow_symlinks=False)
        assert os.getxattr(place / name, "trusted.a", follow_symlinks=False) == b"1"
        assert _own(place / name) == ["trusted.a"]


@needs_root
def test_trusted_attributes_are_for_root(place: Place) -> None:
    path = place / "f"
    path.touch()
    path.chmod(0o666)
    os.setxattr(path, "trusted.a", b"1")
    os.setxattr(path, "user.b", b"2")
    assert _own(path) == ["trusted.a", "user.b"]
    assert as_user(ME, lambda: _own(path)) == ["user.b"]
    with fails(errno.ENODATA):
        as_user(ME, lambda: os.getxattr(path, "trusted.a"))
    with fails(errno.EPERM):
        as_user(ME, lambda: os.setxattr(path, "trusted.a", b"x"))


@needs_root
def test_security_attributes_are_written_by_root_and_read_by_all(place: Place) -> None:
    path = place / "f"
    path.touch()
    path.chmod(0o666)
    os.setxattr(path, "security.note", b"1")
    assert as_user(ME, lambda: os.getxattr(path, "security.note")) == b"1"
    with fails(errno.EPERM):
        as_user(ME, lambda: os.setxattr(path, "security.note", b"x"))
    with fails(errno.EPERM):
        as_user(ME, lambda: os.removexattr(path, "security.note"))


@needs_root
def test_capabilities_are_kept_and_cleared_by_a_write(place: Place) -> None:
    path = place / "f"
    path.write_bytes(b"x")
    net_bind_service = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(path, "security.capability", net_bind_service)
    assert os.getxattr(path, "security.capability") == net_bind_service
    with path.open("ab") as stream:
        stream.write(b"y")
    with fails(errno.ENODATA):
        os.getxattr(path, "security.capability")


@needs_root
def test_user_attributes_need_the_rights_of_the_mode(place: Place) -> None:
    path = place / "f"
    path.touch()
    os.setxattr(path, "user.a", b"1")
    path.chmod(0o644)
    assert as_user(ME, lambda: os.getxattr(path, "user.a")) == b"1"
    with fails(errno.EACCES):
        as_user(ME, lambda: os.setxattr(path, "user.a", b"2"))
    path.chmod(0o600)
    with fails(errno.EACCES):
        as_user(ME, lambda: os.getxattr(path, "user.a"))
    sticky = place / "d"
    sticky.mkdir()
    sticky.chmod(0o1777)
    with fails(errno.EPERM):
        as_user(ME, lambda: os.setxattr(sticky, "user.a", b"2"))


def test_many_attributes(place: Place) -> None:
    path = place / "f"
    path.touch()
    names = [f"user.{i:03}" for i in range(60)]
    for name in names:
        os.setxattr(path, name, name.encode())
    assert _own(path) == names
    for name in names[::2]:
        os.removexattr(path, name)
    assert _own(path) == names[1::2]
    assert all(os.getxattr(path, name) == name.encode() for name in names[1::2])


def test_by_descriptor_after_unlink(place: Place) -> None:
    fd = os.open(place / "f", os.O_CREAT | os.O_RDWR)
    try:
        os.unlink(place / "f")
        os.setxattr(fd, "user.a", b"1")
        assert os.getxattr(fd, "user.a") == b"1"
        assert os.listxattr(fd) == ["user.a"]
    finally:
        os.close(fd)
