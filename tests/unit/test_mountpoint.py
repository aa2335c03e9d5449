"""What is mounted where, and whether a store may be mounted on a directory.

The mounts are real: a tmpfs, and FUSE mounts whose device is opened here and answered by
nobody, which is what a daemon that died leaves behind.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafs.errors import FuseMissingError, MountpointError, StoreBusyError
from cafs.lock import StoreLock
from cafs.mount.mountpoint import (
    FSTYPE,
    Hidden,
    canonical,
    check_apart,
    check_directory,
    check_free,
    check_fuse,
    is_stale,
    mount_at,
    mounts_of_cafs,
    parse_mountinfo,
    source_of,
    store_of,
    user_allow_other,
)
from cafs.mount.unmount import unmount, users

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount here")
needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


def _mount(source: Path | str, target: Path, fstype: str, options: str = "") -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), 0, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while mount_at(path) is not None:
        assert _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


def _mount_fuse(store: Path, mountpoint: Path) -> int:
    """A FUSE mount that nobody answers; it is dead once the descriptor is closed."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    _mount(store, mountpoint, FSTYPE, options)
    return device


MOUNTINFO = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
40 27 0:40 / /mnt/a\040b\134c rw,nosuid - fuse.cafs /srv/the\040store rw,user_id=0
41 27 0:41 / /mnt/x rw - fuse.sshfs host:/ rw
42 27 0:42 / /mnt/x rw - tmpfs tmpfs rw
this line is not one of mountinfo
"""


def test_mountinfo_is_understood() -> None:
    table = parse_mountinfo(MOUNTINFO)
    assert [str(mount.path) for mount in table] == [
        "/proc", "/", "/mnt/a b\\c", "/mnt/x", "/mnt/x",
    ]  # fmt: skip
    assert [mount.store for mount in mounts_of_cafs(table)] == [Path("/srv/the store")]
    topmost = mount_at(Path("/mnt/x"), table)
    assert topmost is not None
    assert topmost.fstype == "tmpfs"
    assert mount_at(Path("/mnt"), table) is None


@given(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw))
def test_any_path_fits_the_mount_table(raw: bytes) -> None:
    store = Path(os.fsdecode(b"/" + raw))
    source = source_of(store)
    assert source.isascii()
    assert store_of(source) == store


def test_an_ordinary_path_is_shown_as_it_is() -> None:
    assert source_of(Path("/var/lib/cafs/a b,c")) == "/var/lib/cafs/a b,c"


def test_this_machine_has_a_root() -> None:
    assert mount_at(Path("/")) is not None


def test_canonical_follows_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert canonical(tmp_path / "link") == tmp_path.resolve() / "real"
    assert canonical(tmp_path / "link" / ".." / "new") == tmp_path.resolve() / "new"


@pytest.mark.parametrize(
    ("store", "mountpoint", "part"),
    [
        ("/a", "/a", "is the store itself"),
        ("/a", "/a/b/c", "lies inside the store /a"),
        ("/a/b/c", "/a", "contains the store /a/b/c"),
        ("/a", "/", "contains the store /a"),
    ],
)
def test_neither_may_contain_the_other(store: str, mountpoint: str, part: str) -> None:
    with pytest.raises(MountpointError, match=part):
        check_apart(Path(store), Path(mountpoint))


def test_names_that_begin_alike_are_apart() -> None:
    check_apart(Path("/a/store"), Path("/a/store2"))
    check_apart(Path("/a/store2"), Path("/a/store"))


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(MountpointError, match="there is no such directory") as caught:
        check_directory(tmp_path / "missing")
    assert caught.value.advice == f"make it: mkdir -p {tmp_path / 'missing'}"
    assert caught.value.meaning.exit_code == 7
    assert not (tmp_path / "missing").exists()


def test_something_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MountpointError, match="is not a directory"):
        check_directory(tmp_path / "file")


def test_what_a_mount_would_hide(tmp_path: Path) -> None:
    assert check_directory(tmp_path) is None
    for name in "gfedcba":
        (tmp_path / name).mkdir()
    hidden = check_directory(tmp_path)
    assert hidden == Hidden(list("abcde"), 7)
    assert str(hidden) == "a, b, c, d, e and 2 more"
    assert str(Hidden(["a"], 1)) == "a"


def test_a_missing_device(tmp_path: Path) -> None:
    with pytest.raises(FuseMissingError, match="is missing") as caught:
        check_fuse(True, device=tmp_path / "fuse")
    assert caught.value.advice == "load it with: modprobe fuse"


def test_fuse_conf_is_understood(tmp_path: Path) -> None:
    conf = tmp_path / "fuse.conf"
    assert not user_allow_other(conf)
    conf.write_text("# user_allow_other\nmount_max = 10\n")
    assert not user_allow_other(conf)
    conf.write_text("mount_max = 10\n user_allow_other \n")
    assert user_allow_other(conf)


def test_an_ordinary_user_and_the_device(tmp_path: Path) -> None:
    """In a process of its own: permissions are those of its user."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    device = tmp_path / "fuse"
    device.touch(0o600)
    script = (
        "import sys, pathlib\n"
        "from cafs.mount.mountpoint import check_fuse\n"
        "from cafs.errors import FuseMissingError\n"
        "import os\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "try:\n"
        "    check_fuse(sys.argv[2] == 'yes', pathlib.Path(sys.argv[1]), pathlib.Path('/none'))\n"
        "except FuseMissingError as error:\n"
        "    print(error)\n"
    )

    def check(allow_other: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", script, device, allow_other],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.getuid() and str(directory).startswith("/tmp/pytest"):
            directory.chmod(0o755)
    assert "may not be opened by this user" in check("no")
    device.chmod(0o666)
    assert "only root may let other users in" in check("yes")
    assert check("no") == ""


def test_nothing_in_the_way(store: Path, mountpoint: Path) -> None:
    assert check_free(store, mountpoint) is False


def test_a_store_that_is_served_already(store: Path, mountpoint: Path) -> None:
    held = StoreLock(store, Path("/mnt/elsewhere"))
    try:
        with pytest.raises(StoreBusyError) as caught:
            check_free(store, mountpoint)
    finally:
        held.release()
    assert str(caught.value) == (
        f"{store} is in use by process {os.getpid()}, mounted on /mnt/elsewhere"
    )
    assert caught.value.meaning.exit_code == 5


@needs_root
def test_a_mountpoint_of_something_else(store: Path, mountpoint: Path) -> None:
    _mount("tmpfs", mountpoint, "tmpfs")
    with pytest.raises(MountpointError, match="is busy: tmpfs of tmpfs is mounted there") as caught:
        check_free(store, mountpoint)
    assert f"umount {mountpoint}" in caught.value.advice


@needs_root
@needs_fuse
def test_a_mount_whose_daemon_died(store: Path, mountpoint: Path, tmp_path: Path) -> None:
    device = _mount_fuse(store, mountpoint)
    alive = StoreLock(store, mountpoint)
    mount = mount_at(mountpoint)
    assert mount is not None
    assert mount.store == store
    assert not is_stale(mount)
    alive.release()
    os.close(device)
    with pytest.raises(OSError, match="Transport endpoint"):
        os.stat(mountpoint)
    assert is_stale(mount)
    # Of the same store: it may be taken away.  Of another: not without being asked to.
    assert check_free(store, mountpoint) is True
    with pytest.raises(MountpointError, match="dead daemon of another store") as caught:
        check_free(tmp_path / "other", mountpoint)
    assert caught.value.advice == f"take it away with: cafs umount {mountpoint}"
    # Neither is touched on the way: a daemon that hangs would hold whoever does.
    assert canonical(mountpoint) == mountpoint
    unmount(mountpoint)
    assert mount_at(mountpoint) is None


@needs_root
@needs_fuse
def test_a_daemon_that_hangs_is_cut_off(store: Path, mountpoint: Path) -> None:
    device = _mount_fuse(store, mountpoint)
    try:
        unmount(mountpoint, force=True)
    finally:
        os.close(device)
    assert mount_at(mountpoint) is None


def test_unmounting_what_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(MountpointError, match="is not a mountpoint"):
        unmount(tmp_path)


@needs_root
def test_who_keeps_a_mount_busy(mountpoint: Path) -> None:
    _mount("tmpfs", mountpoint, "tmpfs")
    (mountpoint / "in").mkdir()
    (mountpoint / "top").mkdir()
    _mount("tmpfs", mountpoint / "top", "tmpfs")
    with (
        subprocess.Popen(["cat"], cwd=mountpoint / "in", stdin=subprocess.PIPE) as worker,
        (mountpoint / "file").open("w") as file,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as writer,
    ):
        found = {(user.pid, user.how) for user in users(mountpoint)}
        with pytest.raises(MountpointError, match=f"pid {worker.pid}") as caught:
            unmount(mountpoint)
    assert (worker.pid, f"works in {mountpoint}/in") in found
    assert (writer.pid, f"has {mountpoint}/file open") in found
    assert os.getpid() not in {pid for pid, _ in found}
    assert (0, f"tmpfs mounted on {mountpoint}/top") in found
    assert "--lazy" in caught.value.advice
    assert mount_at(mountpoint) is not None
    unmount(mountpoint, lazy=True)
    assert mount_at(mountpoint) is None
