"""Where a supervisor closed stdin, stdout or stderr, everything works and nothing is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cafs import lock
from cafs.mount.mountpoint import mount_at
from tests.conftest import ROOT
from tests.fault.smalldisk import wait_until
from tests.lifecycle.test_lifecycle import Place, pytestmark
from tests.lifecycle.test_lifecycle import place as place

assert pytestmark

ALL = "<&- >&- 2>&-"


def _command(closed: str, *arguments: str | Path) -> list[str]:
    run = [sys.executable, "-m", "cafs.cli.main", *map(str, arguments)]
    return ["sh", "-c", f'exec "$0" "$@" {closed}', *run]


def _run(closed: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(closed, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", ALL])
def test_a_command_without_an_output(place: Place, closed: str) -> None:
    assert _run(closed, "init", place.store).returncode == 0
    done = _run(closed, "status", place.store)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert _run(closed, "status", place.store, "--json").returncode == 0
    assert _run(closed, "--help").returncode == 0


def test_the_error_is_said_where_only_the_output_is_closed(place: Place) -> None:
    done = _run(">&-", "status", place.store, "--json")
    assert done.returncode == 4
    assert "there is no store" in done.stderr
    assert _run(ALL, "status", place.store).returncode == 4


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ALL])
def test_a_daemon_in_the_background(place: Place, closed: str) -> None:
    done = _run(closed, "up", place.store, place.mountpoint)
    assert done.returncode == 0, done.stderr
    held_by = lock.holder(place.store)
    assert held_by is not None
    for number in range(3):
        target = os.readlink(f"/proc/{held_by.pid}/fd/{number}")
        assert target in ("/dev/null", str(place.store / "cafs.log"))
    (place.mountpoint / "file").write_text("content")
    assert (place.mountpoint / "file").read_text() == "content"
    assert _run(closed, "umount", place.mountpoint).returncode == 0
    assert mount_at(place.mountpoint) is None


def test_a_daemon_in_the_foreground(place: Place) -> None:
    assert _run(ALL, "init", place.store).returncode == 0
    with subprocess.Popen(
        _command(ALL, "mount", place.store, place.mountpoint), cwd=ROOT
    ) as daemon:
        wait_until(
            "it is mounted, or not",
            lambda: mount_at(place.mountpoint) is not None or daemon.poll() is not None,
        )
        assert daemon.poll() is None
        (place.mountpoint / "file").write_text("content")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    assert mount_at(place.mountpoint) is None
