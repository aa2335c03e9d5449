"""What ``cafs umount`` says is what the daemon said, and a daemon that hangs holds nobody up."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cafs import control, lock
from cafs.errors import DaemonError
from cafs.mount.mountpoint import mount_at
from tests.conftest import ROOT
from tests.fault.smalldisk import wait_until
from tests.lifecycle.test_lifecycle import Place, pytestmark
from tests.lifecycle.test_lifecycle import place as place

assert pytestmark


def _synced(path: Path, content: str) -> None:
    with path.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def writer_of(pid: int) -> int:
    """The child of a daemon that writes its index."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            if b"cafs.index.writer" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError(f"process {pid} has no index writer")


def limit(writer: int, size: int) -> int:
    """Let the index end there; where it might end before."""
    soft, hard = resource.prlimit(writer, resource.RLIMIT_FSIZE)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (size, hard))
    return soft


def test_json_says_that_the_final_commit_was_made(place: Place) -> None:
    place.up()
    (place.mountpoint / "file").write_text("content")
    done = place.run("umount", place.mountpoint, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["ended"], answer["committed"]) == (True, True)


def test_what_gathered_behind_a_failed_commit_is_there_after_an_unmount(place: Place) -> None:
    pid = place.up("--commit-interval", "1min")["pid"]
    assert isinstance(pid, int)
    _synced(place.mountpoint / "first", "a")
    writer = writer_of(pid)
    unlimited = limit(writer, 4096)
    with pytest.raises(OSError, match=r"Input/output error|No space"):
        _synced(place.mountpoint / "second", "b")
    limit(writer, unlimited)
    (place.mountpoint / "third").write_text("c")
    (place.mountpoint / "dir").mkdir()
    (place.mountpoint / "dir" / "fourth").write_text("d")
    done = place.run("umount", place.mountpoint)
    assert done.returncode == 0, done.stderr
    place.up()
    found = {path.name: path.read_text() for path in place.mountpoint.rglob("*") if path.is_file()}
    assert found == {"first": "a", "second": "b", "third": "c", "fourth": "d"}


def test_a_final_commit_that_fails_is_said_with_what_was_lost(place: Place) -> None:
    pid = place.up("--commit-interval", "1min")["pid"]
    assert isinstance(pid, int)
    _synced(place.mountpoint / "kept", "a")
    (place.mountpoint / "lost").write_text("b")
    limit(writer_of(pid), 4096)
    done = place.run("umount", place.mountpoint)
    assert done.returncode in (9, 11), done.stderr
    assert "on disk" not in done.stdout
    assert f"{place.mountpoint} is unmounted, but the final commit failed" in done.stderr
    assert "lost is what was changed since" in done.stderr
    assert "what to do: " in done.stderr
    assert mount_at(place.mountpoint) is None
    place.up()
    assert os.listdir(place.mountpoint) == ["kept"]


def test_a_daemon_that_is_killed_while_it_commits_is_no_success(place: Place) -> None:
    pid = place.up("--commit-interval", "1min")["pid"]
    assert isinstance(pid, int)
    (place.mountpoint / "file").write_text("content")
    writer = writer_of(pid)
    os.kill(writer, signal.SIGSTOP)
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "cafs.cli.main", "umount", place.mountpoint],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as umount:
            wait_until("it is unmounted", lambda: mount_at(place.mountpoint) is None)
            os.kill(pid, signal.SIGKILL)
            os.kill(writer, signal.SIGCONT)
            out, err = umount.communicate(timeout=60)
    finally:
        try:
            os.kill(writer, signal.SIGCONT)
        except ProcessLookupError:
            pass
    assert umount.returncode == 12, err
    assert "died before its final commit was over" in err
    assert "on disk" not in out
    assert lock.holder(place.store) is None


def test_a_daemon_that_cannot_be_asked_is_not_believed(place: Place) -> None:
    place.up()
    (place.store / control.NAME).unlink()
    done = place.run("umount", place.mountpoint)
    assert done.returncode == 12
    assert "did not say whether everything is on disk" in done.stderr
    assert mount_at(place.mountpoint) is None
    assert lock.holder(place.store) is None


def test_whoever_hangs_up_before_the_end_is_forgotten(place: Place) -> None:
    place.up()
    with control.Ending(place.store, 30):
        pass
    with control.Ending(place.store, 30) as ending:
        assert not ending.wait(0.01), "it serves, and says nothing"
        done = place.run("umount", place.mountpoint)
        assert done.returncode == 0, done.stderr
        assert ending.wait(30), "everyone who asked is told"


def test_force_on_a_daemon_that_is_well_does_not_promise_everything(place: Place) -> None:
    place.up()
    (place.mountpoint / "file").write_text("content")
    done = place.run("umount", place.mountpoint, "--force")
    assert done.returncode == 0, done.stderr
    assert "everything is on disk" not in done.stdout
    assert "by force" in done.stdout
    assert lock.holder(place.store) is None


@pytest.mark.parametrize("flags", [[], ["--force"], ["--lazy"]], ids=["plain", "force", "lazy"])
def test_a_daemon_that_hangs_does_not_hang_who_names_its_mountpoint(
    place: Place, flags: list[str]
) -> None:
    pid = place.up()["pid"]
    assert isinstance(pid, int)
    # So that the kernel cannot answer a stat of the mountpoint by itself.
    (place.mountpoint / "new").mkdir()
    os.kill(pid, signal.SIGSTOP)
    try:
        done = place.run("umount", place.mountpoint, "--timeout", "2s", *flags)
        assert done.returncode == (0 if flags == ["--lazy"] else 12), done.stderr
        if flags:
            assert mount_at(place.mountpoint) is None
        else:
            assert f"{place.mountpoint} stays mounted" in done.stderr
            assert f"cafs umount --force {place.mountpoint}" in done.stderr
            assert mount_at(place.mountpoint) is not None
    finally:
        os.kill(pid, signal.SIGCONT)
    if flags:
        assert lock.wait_until_free(place.store, 20)
    else:
        assert place.run("umount", place.mountpoint).returncode == 0


def test_who_asks_a_daemon_that_says_nothing_is_not_held_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / control.NAME))
        listening.listen()
        with pytest.raises(DaemonError, match="did not answer"):
            control.Ending(tmp_path, 0.05)
