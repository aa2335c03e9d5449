"""POSIX ACLs: granted and refused by them, kept in step with the mode, handed down."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import as_user, fails, outcome

ME, SOMEONE, GROUP = 4001, 4002, 4100
NOBODY = 0xFFFFFFFF
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(not shutil.which("setfacl"), reason="setfacl is not installed"),
]


def _set(path: Path, *arguments: str) -> None:
    subprocess.run(["setfacl", *arguments, path], check=True)


def _get(path: Path) -> list[str]:
    done = subprocess.run(
        ["getfacl", "--numeric", "--omit-header", "--absolute-names", "--no-effective", path],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [line for line in done.stdout.splitlines() if line]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _file(place: Place, name: str = "f", mode: int = 0o640) -> Path:
    path = place / name
    path.write_bytes(b"x")
    path.chmod(mode)
    return path


def test_a_named_user_is_let_in(place: Place) -> None:
    path = _file(place)

    def act() -> str:
        return outcome(lambda: os.close(os.open(path, os.O_RDONLY)))

    assert as_user(ME, act) == "EACCES"
    _set(path, "-m", f"u:{ME}:r")
    assert as_user(ME, act) == "ok"
    assert as_user(SOMEONE, act) == "EACCES"
    _set(path, "-x", f"u:{ME}")
    assert as_user(ME, act) == "EACCES"


def test_a_named_user_is_kept_out(place: Place) -> None:
    path = _file(place, mode=0o644)
    _set(path, "-m", f"u:{ME}:-")
    with fails(errno.EACCES):
        as_user(ME, lambda: os.open(path, os.O_RDONLY))
    as_user(SOMEONE, lambda: os.open(path, os.O_RDONLY))


def test_a_named_group_and_the_mask(place: Place) -> None:
    path = _file(place)
    _set(path, "-m", f"g:{GROUP}:rw")
    assert as_user(ME, lambda: os.access(path, os.R_OK | os.W_OK), groups=(GROUP,))
    _set(path, "-m", "m::r")
    assert as_user(ME, lambda: os.access(path, os.R_OK), groups=(GROUP,))
    assert not as_user(ME, lambda: os.access(path, os.W_OK), groups=(GROUP,))


def test_the_group_bits_are_the_mask(place: Place) -> None:
    path = _file(place)
    _set(path, "-m", f"u:{ME}:rwx")
    assert _mode(path) == 0o670
    assert _get(path) == ["user::rw-", f"user:{ME}:rwx", "group::r--", "mask::rwx", "other::---"]
    path.chmod(0o614)
    assert _get(path) == ["user::rw-", f"user:{ME}:rwx", "group::r--", "mask::--x", "other::r--"]
    assert _mode(path) == 0o614
    with fails(errno.EACCES):
        as_user(ME, lambda: os.open(path, os.O_RDONLY))


def test_setting_the_three_plain_entries_sets_the_mode_and_keeps_no_acl(place: Place) -> None:
    path = _file(place)
    _set(path, "--set", "u::rwx,g::x,o::r")
    assert _mode(path) == 0o714
    assert ACCESS not in os.listxattr(path)
    _set(path, "-m", f"u:{ME}:r")
    assert ACCESS in os.listxattr(path)
    _set(path, "-b")
    assert ACCESS not in os.listxattr(path)
    assert _mode(path) == 0o714


def test_setgid_falls_when_somebody_outside_the_group_sets_an_acl(place: Place) -> None:
    path = _file(place, mode=0o2755)
    os.chown(path, ME, GROUP)
    path.chmod(0o2755)
    as_user(ME, lambda: _set(path, "-m", f"u:{SOMEONE}:rx"), groups=(GROUP,))
    assert _mode(path) == 0o2755
    as_user(ME, lambda: _set(path, "-m", f"u:{SOMEONE}:r"))
    assert _mode(path) == 0o755


def test_only_the_owner_sets_it(place: Place) -> None:
    path = _file(place, mode=0o666)
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, 6, 0xFFFFFFFF) for tag in (1, 4, 32)
    )
    with fails(errno.EPERM):
        as_user(ME, lambda: os.setxattr(path, ACCESS, acl))
    os.setxattr(path, ACCESS, acl)


def test_malformed_ones_are_refused(place: Place) -> None:
    path = _file(place)
    entries = b"".join(struct.pack("<HHI", tag, 6, 0xFFFFFFFF) for tag in (1, 4, 32))
    with fails(errno.EINVAL, errno.EOPNOTSUPP):
        os.setxattr(path, ACCESS, struct.pack("<I", 3) + entries)
    with fails(errno.EINVAL):
        os.setxattr(path, ACCESS, struct.pack("<I", 2) + entries[:8])
    with fails(errno.EINVAL):
        os.setxattr(path, ACCESS, b"x")
    with fails(errno.EACCES):
        os.setxattr(path, DEFAULT, struct.pack("<I", 2) + entries)  # only directories have one
    assert _mode(path) == 0o640


def test_default_acl_is_handed_down(place: Place) -> None:
    parent = place / "d"
    parent.mkdir()
    _set(parent, "-d", "-m", f"u::rwx,g::rx,o::-,u:{ME}:rwx")
    old = os.umask(0)
    try:
        fd = os.open(parent / "f", os.O_CREAT | os.O_WRONLY, 0o666)
        os.close(fd)
        (parent / "sub").mkdir(0o777)
        os.mkfifo(parent / "p", 0o666)
        (parent / "l").symlink_to("f")
    finally:
        os.umask(old)
    named = ["user::rw-", f"user:{ME}:rwx", "group::r-x", "mask::rw-", "other::---"]
    assert _get(parent / "f") == named
    assert _get(parent / "p") == named
    inherited = ["user::rwx", f"user:{ME}:rwx", "group::r-x", "mask::rwx", "other::---"]
    assert _get(parent / "sub") == inherited + [f"default:{line}" for line in inherited]
    assert (_mode(parent / "f"), _mode(parent / "sub")) == (0o660, 0o770)
    (parent / "sub" / "deeper").mkdir()
    assert DEFAULT in os.listxattr(parent / "sub" / "deeper")
    assert as_user(ME, lambda: outcome(lambda: (parent / "sub" / "mine").touch())) == "ok"


def test_default_acl_without_named_entries_becomes_the_mode(place: Place) -> None:
    parent = place / "d"
    parent.mkdir()
    _set(parent, "-d", "-m", "u::rwx,g::r,o::-")
    old = os.umask(0)
    try:
        os.close(os.open(parent / "f", os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        os.umask(old)
    assert _mode(parent / "f") == 0o640
    assert ACCESS not in os.listxattr(parent / "f")


def test_default_acl_and_umask(place: Place) -> None:
    """Where there is a default ACL ext4 leaves umask out; in a FUSE mount it has its say first."""
    parent = place / "d"
    parent.mkdir()
    _set(parent, "-d", "-m", f"u::rwx,g::rwx,o::-,u:{ME}:rwx")
    os.close(os.open(parent / "f", os.O_CREAT | os.O_WRONLY, 0o666))
    assert _mode(parent / "f") == (0o640 if place.is_cafs else 0o660)


def test_default_acl_of_a_directory_is_removed(place: Place) -> None:
    parent = place / "d"
    parent.mkdir()
    _set(parent, "-d", "-m", f"u:{ME}:rwx")
    assert DEFAULT in os.listxattr(parent)
    _set(parent, "-k")
    assert DEFAULT not in os.listxattr(parent)
    (parent / "f").touch()
    assert ACCESS not in os.listxattr(parent / "f")


def test_acl_of_a_directory_guards_the_way_through(place: Place) -> None:
    parent = place / "d"
    parent.mkdir(0o700)
    (parent / "f").write_bytes(b"x")

    def act() -> str:
        return outcome(lambda: os.stat(parent / "f"))

    assert as_user(ME, act) == "EACCES"
    _set(parent, "-m", f"u:{ME}:x")
    assert as_user(ME, act) == "ok"
    _set(parent, "-b")
    assert as_user(ME, act) == "EACCES"


def test_acl_survives_copies(place: Place) -> None:
    source = place / "src"
    source.mkdir()
    _file(place, "src/f")
    _set(source / "f", "-m", f"u:{ME}:rw,g:{GROUP}:r")
    _set(source, "-m", f"d:u:{ME}:rx")
    subprocess.run(["cp", "-a", source, place / "copy"], check=True)
    for name in ("", "f"):
        assert _get(place / "copy" / name) == _get(source / name)


def test_what_cannot_inherit_an_acl_is_not_made(place: Place) -> None:
    parent = place / "d"
    parent.mkdir()
    users = [(2, 7, 10_000 + number) for number in range(300)]
    entries = [(1, 7, NOBODY), *users, (4, 5, NOBODY), (16, 7, NOBODY), (32, 5, NOBODY)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(parent, DEFAULT, acl)
    # A directory would have it twice.
    for _ in range(2):
        with fails(errno.ENOSPC):
            (parent / "sub").mkdir()
        assert not (parent / "sub").exists()
    assert os.listdir(parent) == []
    (parent / "file").touch()
