"""Starting a daemon: the command hears whether it came up, however it fails."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

# The daemon of these tests does what the body says instead of serving a mount.
_SCRIPT = """
import os, signal, sys
from pathlib import Path
from cafs.cli import background
from cafs.errors import CafsError, StoreBusyError

# A shell that runs the tests in its background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def serve(ready):
    {body}

try:
    print("up", background.start(serve, Path(sys.argv[1]), "info"))
except CafsError as error:
    print(type(error).__name__, error.meaning.exit_code, error, "/", error.advice)
"""


def _start(tmp_path: Path, body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(body=body), tmp_path / "cafs.log"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.strip()


def _await_end(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(20_000), f"process {pid} did not end"
    finally:
        os.close(handle)


def test_the_command_returns_when_the_mount_answers(tmp_path: Path) -> None:
    body = "ready(); print('to nobody'); signal.pause()"
    word, number = _start(tmp_path, body).split()
    pid = int(number)
    assert word == "up"
    try:
        # As setsid(2) has it for a process that can never get a terminal.
        assert os.getsid(pid) not in (pid, os.getsid(0))
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/fd/2") == str(tmp_path / "cafs.log")
    finally:
        os.kill(pid, signal.SIGKILL)
        _await_end(pid)


def test_the_daemon_holds_nothing_that_its_caller_had_open(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    script = _SCRIPT.format(body="ready(); signal.pause()")
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "cafs.log"],
            pass_fds=[writer],
            capture_output=True,
            text=True,
            timeout=30,
            cwd=ROOT,
            check=True,
        )
    finally:
        os.close(writer)
    pid = int(done.stdout.split()[1])
    try:
        with os.fdopen(reader, "rb") as pipe:
            assert select.select([pipe], [], [], 10)[0], "somebody has its other end"
            assert pipe.read() == b""
    finally:
        os.kill(pid, signal.SIGKILL)
        _await_end(pid)


def test_an_error_of_the_daemon_is_the_command_s_own(tmp_path: Path) -> None:
    said = _start(tmp_path, "raise StoreBusyError('taken', advice='wait')")
    assert said == "StoreBusyError 5 taken / wait"
    assert "error cafs.cli.background: taken advice=wait" in (tmp_path / "cafs.log").read_text()


def test_a_defect_of_the_daemon_is_in_its_log(tmp_path: Path) -> None:
    said = _start(tmp_path, "raise RuntimeError('boom')")
    assert said.startswith("DaemonError 12 the daemon ended by a defect of cafs, id ")
    name = said.split("id ")[1].split()[0]
    log = (tmp_path / "cafs.log").read_text()
    assert f"id={name}" in log
    assert "    RuntimeError: boom" in log


def test_a_daemon_that_dies_without_a_word(tmp_path: Path) -> None:
    said = _start(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert said.startswith("DaemonError 12 the daemon ended before the mount was there")
    assert str(tmp_path / "cafs.log") in said
    assert _start(tmp_path, "pass").startswith("DaemonError 12 the daemon ended before")


def test_a_crash_of_the_interpreter_is_in_the_log(tmp_path: Path) -> None:
    _start(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)")
    assert "Fatal Python error: Segmentation fault" in (tmp_path / "cafs.log").read_text()


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cafs.log").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(body="ready()"), tmp_path / "cafs.log"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=True,
    )
    assert "cannot be written (Is a directory): this daemon does not log" in done.stderr
    assert done.stdout.startswith("up ")


def test_ctrl_c_stops_a_daemon_that_is_not_up_yet(tmp_path: Path) -> None:
    go = tmp_path / "started"
    body = f"Path({str(go)!r}).write_text(str(os.getpid())); signal.pause()"
    os.mkfifo(go)
    with subprocess.Popen(
        [sys.executable, "-c", _SCRIPT.format(body=body), tmp_path / "cafs.log"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as command:
        pid = int(go.read_text())
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=30)
    assert f"stopping the daemon, process {pid}" in err
    _await_end(pid)
