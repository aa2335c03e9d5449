"""The end of a daemon while somebody is at work: nothing hangs, and nothing is cut short."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from cafs import lock
from cafs.http.serve import SOCKET_NAME
from tests.conftest import ROOT
from tests.fault.smalldisk import wait_until
from tests.lifecycle.test_lifecycle import Place, pytestmark
from tests.lifecycle.test_lifecycle import place as place
from tests.lifecycle.test_unmount import writer_of

assert pytestmark

# A directory's lock is held by who waits for the answer to this mkdir, and wanted by who tells the
# kernel of a change; then nobody answers any more.
_CRASH = """
import sys
from pathlib import Path
import trio
from cafs.mount.handlers import Handlers
from cafs.notices import EntryChanged

def told():
    words = [each.read_text() for each in Path("/proc/self/task").glob("*/wchan")]
    return any("fuse" in word for word in words)

async def mkdir(self, parent, name, mode, ctx):
    self._known.asked(parent)
    trio.lowlevel.spawn_system_task(self._store.notices.tell, [EntryChanged(parent, b"x")])
    while not told():
        await trio.sleep(0.01)
    raise RuntimeError("boom")

Handlers.mkdir = mkdir
sys.argv[0] = "cafs"
from cafs.cli.main import main
sys.exit(main())
"""


def _pid(place: Place, *flags: str) -> int:
    pid = place.up(*flags)["pid"]
    assert isinstance(pid, int)
    return pid


def test_an_upload_into_a_directory_that_is_worked_in_does_not_hang_the_end(place: Place) -> None:
    pid = _pid(place)
    directory = place.mountpoint / "dir"
    directory.mkdir()
    os.listdir(directory)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(place.store / SOCKET_NAME))
        client.sendall(
            b"PUT /admin/dir/blob HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n"
            b"Expect: 100-continue\r\n\r\n12345"
        )
        assert b" 100 " in client.recv(1000)
        os.kill(pid, signal.SIGTERM)
        wait_until("it is told", lambda: "SIGTERM: unmounting" in place.log())
        with subprocess.Popen(["mkdir", directory / "new"], stderr=subprocess.DEVNULL) as mkdir:
            try:
                client.sendall(b"67890")
                assert b" 201 " in client.recv(1000)
                assert lock.wait_until_free(place.store, 20)
                assert mkdir.wait(20) == 0
            finally:
                mkdir.kill()
    place.up()
    assert (directory / "blob").read_bytes() == b"1234567890"
    assert (directory / "new").is_dir()


def test_a_main_loop_that_dies_hangs_nobody(place: Place) -> None:
    place.run("init", place.store)
    with subprocess.Popen(
        [sys.executable, "-c", _CRASH, "mount", place.store, place.mountpoint, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as daemon:
        assert daemon.stdout is not None
        assert json.loads(daemon.stdout.readline())["pid"]
        with subprocess.Popen(["mkdir", place.mountpoint / "new"], stderr=subprocess.PIPE) as mkdir:
            try:
                assert mkdir.wait(20) == 1
            finally:
                mkdir.kill()
        _, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 70, err
    assert "cutting the connection" in err
    assert "RuntimeError: boom" in err


@pytest.mark.parametrize("how", ["signal", "umount"])
def test_a_second_signal_does_not_cut_the_final_commit_short(place: Place, how: str) -> None:
    pid = _pid(place, "--commit-interval", "1min")
    (place.mountpoint / "file").write_text("content")
    writer = writer_of(pid)
    os.kill(writer, signal.SIGSTOP)
    try:
        if how == "signal":
            os.kill(pid, signal.SIGTERM)
        else:
            subprocess.run(["umount", place.mountpoint], check=True)
        wait_until("it has unmounted", lambda: not os.path.ismount(place.mountpoint))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        wait_until("they were heard", lambda: place.log().count("ending already") >= 2)
    finally:
        os.kill(writer, signal.SIGCONT)
    assert lock.wait_until_free(place.store, 20)
    place.up()
    assert (place.mountpoint / "file").read_text() == "content"


def test_the_end_of_the_terminal_is_an_orderly_end(place: Place) -> None:
    place.run("init", place.store)
    with subprocess.Popen(
        [sys.executable, "-m", "cafs.cli.main", "mount", place.store, place.mountpoint, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as daemon:
        assert daemon.stdout is not None
        assert json.loads(daemon.stdout.readline())["pid"]
        (place.mountpoint / "file").write_text("content")
        daemon.send_signal(signal.SIGHUP)
        _, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, err
    assert "SIGHUP: unmounting" in err
    place.up()
    assert (place.mountpoint / "file").read_text() == "content"


def test_a_daemon_that_is_to_survive_its_terminal_does(place: Place) -> None:
    place.run("init", place.store)
    with subprocess.Popen(
        [
            "nohup",
            sys.executable,
            "-m",
            "cafs.cli.main",
            "mount",
            place.store,
            place.mountpoint,
            "--json",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as daemon:
        assert daemon.stdout is not None
        assert json.loads(daemon.stdout.readline())["pid"]
        daemon.send_signal(signal.SIGHUP)
        (place.mountpoint / "file").write_text("content")
        daemon.send_signal(signal.SIGTERM)
        _, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, err
    assert "SIGHUP" not in err
