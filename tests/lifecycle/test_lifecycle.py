"""First contact as an operator has it: up, a second daemon, a killed one, busy, umount."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafs import lock
from cafs.mount.mountpoint import is_stale, mount_at
from tests.conftest import ROOT, RunCafs
from tests.fault.smalldisk import wait_until

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="cleans up with umount2(2), which root may call"),
]

_MNT_FORCE = 1
_MNT_DETACH = 2


class Place:
    """A store and a mountpoint of a test's own; the mountpoint is a directory."""

    def __init__(self, root: Path, run: RunCafs) -> None:
        self.store = root / "store"
        self.mountpoint = root / "mnt"
        self.mountpoint.mkdir()
        self.run = run

    def up(self, *flags: str) -> dict[str, object]:
        done = self.run("up", self.store, self.mountpoint, "--json", *flags)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    def kill(self) -> None:
        """SIGKILL the daemon, and wait until neither it nor its writer is there."""
        held_by = lock.holder(self.store)
        assert held_by is not None
        os.kill(held_by.pid, signal.SIGKILL)
        assert lock.wait_until_free(self.store, 20)

    def log(self) -> str:
        return (self.store / "cafs.log").read_text()


@pytest.fixture
def place(tmp_path: Path, run_cafs: RunCafs) -> Iterator[Place]:
    place = Place(tmp_path, run_cafs)
    yield place
    held_by = lock.holder(place.store)
    libc = ctypes.CDLL(None)
    while mount_at(place.mountpoint) is not None:
        assert libc.umount2(os.fsencode(place.mountpoint), _MNT_DETACH) == 0
    if held_by is not None and not lock.wait_until_free(place.store, 20):
        os.kill(held_by.pid, signal.SIGKILL)


def test_up_is_all_it_takes(place: Place) -> None:
    done = place.run("up", place.store, place.mountpoint)
    assert done.returncode == 0, done.stderr
    held_by = lock.holder(place.store)
    assert held_by is not None
    assert held_by.mountpoint == place.mountpoint
    first, *rest = done.stdout.splitlines()
    assert first == (
        f"new store {place.store} is mounted on {place.mountpoint} (process {held_by.pid})"
    )
    for word in ("try:", "look:", "stop:", f"cafs umount {place.mountpoint}"):
        assert any(word in line for line in rest)
    (place.mountpoint / "file").write_text("content")
    again = place.up()
    assert again["pid"] == held_by.pid
    assert again["made"] is False

    done = place.run("umount", place.mountpoint)
    assert done.returncode == 0, done.stderr
    assert "everything is on disk" in done.stdout
    # That it returned is the promise: the daemon is gone, so the final commit is over.
    assert lock.holder(place.store) is None
    assert mount_at(place.mountpoint) is None
    assert list(place.mountpoint.iterdir()) == []

    assert place.up()["made"] is False
    assert (place.mountpoint / "file").read_text() == "content"
    # A store is as good as its mountpoint.
    assert place.run("umount", place.store).returncode == 0


def test_status_with_and_without_a_daemon(place: Place) -> None:
    place.up()
    (place.mountpoint / "file").write_bytes(b"x" * 1000)
    served = json.loads(place.run("status", place.mountpoint, "--json").stdout)
    assert (served["store"], served["mounted"]) == (str(place.store), True)
    assert served["mountpoint"] == str(place.mountpoint)
    assert place.run("status", place.store).returncode == 0
    assert place.run("umount", place.mountpoint).returncode == 0
    alone = json.loads(place.run("status", place.store, "--json").stdout)
    assert alone["mounted"] is False
    assert (served["health"]["state"], alone["health"]["state"]) == ("ok", "stopped")
    assert (alone["files_count"], alone["logical_bytes"]) == (1, 1000)


def test_a_second_daemon_is_refused_and_changes_nothing(place: Place, tmp_path: Path) -> None:
    pid = place.up()["pid"]
    other = tmp_path / "other"
    other.mkdir()
    for flags in (["--daemon"], []):
        done = place.run("mount", place.store, other, *flags)
        assert done.returncode == 5
        assert f"is in use by process {pid}, mounted on {place.mountpoint}" in done.stderr
    done = place.run("init", tmp_path / "store2")
    done = place.run("mount", tmp_path / "store2", place.mountpoint)
    assert done.returncode == 7
    assert f"{place.mountpoint} is busy: store {place.store} is mounted there" in done.stderr
    (place.mountpoint / "works").touch()


def test_what_is_hidden_is_named(place: Place) -> None:
    for number in range(7):
        (place.mountpoint / f"dir{number}").mkdir()
    done = place.run("up", place.store, place.mountpoint)
    assert done.returncode == 0
    assert "these are hidden: dir0, dir1, dir2, dir3, dir4 and 2 more" in done.stderr
    assert list(place.mountpoint.iterdir()) == []
    assert place.run("umount", place.mountpoint).returncode == 0
    assert len(list(place.mountpoint.iterdir())) == 7


def test_a_mount_left_behind_by_a_killed_daemon(place: Place, tmp_path: Path) -> None:
    place.up()
    (place.mountpoint / "file").write_text("kept")
    with (place.mountpoint / "file").open() as file:
        os.fsync(file.fileno())
    place.kill()

    # Another store must not take the place of one that was there.
    place.run("init", tmp_path / "store2")
    done = place.run("mount", tmp_path / "store2", place.mountpoint)
    assert done.returncode == 7
    assert f"dead daemon of another store, {place.store}" in done.stderr
    assert f"cafs umount {place.mountpoint}" in done.stderr

    # Its own store cleans up by itself, and says so.
    done = place.run("up", place.store, place.mountpoint)
    assert done.returncode == 0, done.stderr
    assert "left behind by a daemon that died; taking it away" in done.stderr
    assert (place.mountpoint / "file").read_text() == "kept"

    # So does umount, without a flag.
    place.kill()
    done = place.run("umount", place.mountpoint)
    assert done.returncode == 0, done.stderr
    assert "which a dead daemon" in done.stdout
    assert mount_at(place.mountpoint) is None


def test_a_mount_left_behind_of_a_store_that_is_served_elsewhere(
    place: Place, tmp_path: Path
) -> None:
    place.up()
    place.kill()
    other, shown = tmp_path / "other", tmp_path / "shown"
    other.mkdir()
    shown.mkdir()
    assert place.run("up", place.store, other).returncode == 0
    try:
        done = place.run("umount", place.mountpoint, "--timeout", "5s")
        assert done.returncode == 0, done.stderr
        assert "which a dead daemon" in done.stdout
        assert mount_at(place.mountpoint) is None
        (other / "file").write_text("it serves on")
        # Another place for the same mount is none that was left behind.
        subprocess.run(["mount", "--bind", other, shown], check=True)
        bound = mount_at(shown)
        assert bound is not None
        assert not is_stale(bound)
        subprocess.run(["umount", shown], check=True)
    finally:
        done = place.run("umount", other)
    assert done.returncode == 0, done.stderr


def test_a_busy_mount_names_who_uses_it_and_stays(place: Place) -> None:
    place.up()
    (place.mountpoint / "dir").mkdir()
    with subprocess.Popen(["cat"], cwd=place.mountpoint / "dir", stdin=subprocess.PIPE) as user:
        done = place.run("umount", place.mountpoint)
        assert done.returncode == 7
        assert f"cat (pid {user.pid}): works in {place.mountpoint}/dir" in done.stderr
        assert (place.mountpoint / "dir").is_dir()
        done = place.run("umount", place.mountpoint, "--lazy")
        assert done.returncode == 0
        assert mount_at(place.mountpoint) is None
        assert lock.holder(place.store) is not None
        assert user.stdin is not None
        user.stdin.close()
    # Its last user is gone, so the daemon goes, too.
    assert lock.wait_until_free(place.store, 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_until_a_signal(place: Place, number: signal.Signals) -> None:
    place.run("init", place.store)
    with subprocess.Popen(
        [sys.executable, "-m", "cafs.cli.main", "mount", place.store, place.mountpoint, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as daemon:
        assert daemon.stdout is not None
        assert json.loads(daemon.stdout.readline())["pid"] == daemon.pid
        (place.mountpoint / "file").write_text("content")
        daemon.send_signal(number)
        _, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, err
    assert "info cafs.mount.run: mounted" in err
    assert mount_at(place.mountpoint) is None
    place.up()
    assert (place.mountpoint / "file").read_text() == "content"


def test_a_daemon_that_cannot_mount_gives_its_own_error(place: Place) -> None:
    place.run("init", place.store)
    data = place.store / "index" / "data.mdb"
    data.write_bytes(b"\0" * data.stat().st_size)
    background = place.run("mount", place.store, place.mountpoint, "--daemon")
    foreground = place.run("mount", place.store, place.mountpoint)
    assert background.returncode == foreground.returncode == 8
    assert "cafs rebuild" in background.stderr
    assert mount_at(place.mountpoint) is None
    assert lock.holder(place.store) is None


def test_flags_reach_the_daemon(place: Place) -> None:
    place.up("--log-level", "warning", "--chunk-avg", "32KiB")
    assert 'chunk_avg = "32KiB"' in (place.store / "store.toml").read_text()
    assert " info " not in place.log()


def test_force_ends_a_daemon_that_hangs(place: Place) -> None:
    pid = place.up()["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)
    try:
        done = place.run("umount", place.mountpoint, "--force", "--timeout", "10ms")
        # Unmounted at once; that the daemon did not end is said, not waited for.
        assert done.returncode == 12
        assert f"is still in use by process {pid}" in done.stderr
        assert mount_at(place.mountpoint) is None
    finally:
        os.kill(pid, signal.SIGCONT)
    assert lock.wait_until_free(place.store, 20)


def test_a_connection_that_is_cut_under_a_user_is_said_and_loses_nothing(place: Place) -> None:
    place.up()
    descriptor = os.open(place.mountpoint / "file", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"content")
    os.fsync(descriptor)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.umount2(os.fsencode(place.mountpoint), _MNT_FORCE) == -1
    assert ctypes.get_errno() == errno.EBUSY
    assert lock.wait_until_free(place.store, 20)
    with pytest.raises(OSError, match="Transport endpoint is not connected"):
        os.close(descriptor)
    # Whoever writes now is told so, and does not write into the directory below.
    with pytest.raises(OSError, match="Transport endpoint is not connected"):
        (place.mountpoint / "hidden").write_bytes(b"")
    wait_until("the log tells it", lambda: "was cut (umount -f" in place.log())
    assert "unmounted from" not in place.log()
    place.up()
    assert (place.mountpoint / "file").read_text() == "content"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_a_connection_that_ends_with_another_errno_ends_the_daemon_in_order(
    place: Place, tmp_path: Path
) -> None:
    library = tmp_path / "closed_connection.so"
    source = Path(__file__).with_name("closed_connection.c")
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    done = place.run("up", place.store, place.mountpoint, env={"LD_PRELOAD": str(library)})
    assert done.returncode == 0, done.stderr
    (place.mountpoint / "file").write_text("content")
    done = place.run("umount", place.mountpoint)
    assert done.returncode == 0, done.stderr
    assert "the kernel closed the connection" in place.log()
    wait_until("the log tells it", lambda: "unmounted from" in place.log())
    assert "defect" not in place.log()
    place.up()
    assert (place.mountpoint / "file").read_text() == "content"
