"""flock(2), record locks and open-file-description locks, across processes."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import fails

F_OFD_SETLK = 37


def _elsewhere(path: Path, code: str) -> str:
    """Run *code* with the file open as ``fd`` in another process and return what it printed."""
    program = f"import os, fcntl, sys\nfd = os.open(sys.argv[1], os.O_RDWR)\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program, path], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


TRY_FLOCK = """
try: fcntl.flock(fd, fcntl.{mode} | fcntl.LOCK_NB); print("got it")
except BlockingIOError: print("busy")
"""
TRY_LOCKF = """
try: fcntl.lockf(fd, fcntl.{mode} | fcntl.LOCK_NB, {length}, {start}); print("got it")
except (BlockingIOError, PermissionError): print("busy")
"""


@pytest.fixture
def file(place: Place) -> Path:
    """A file of a hundred bytes."""
    path = place / "locked"
    path.write_bytes(b"x" * 100)
    return path


def test_flock_exclusive_and_shared(file: Path) -> None:
    with file.open("rb+") as one, file.open("rb+") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with fails(errno.EWOULDBLOCK):
            fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert _elsewhere(file, TRY_FLOCK.format(mode="LOCK_SH")) == "busy"
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert _elsewhere(file, TRY_FLOCK.format(mode="LOCK_SH")) == "got it"
        assert _elsewhere(file, TRY_FLOCK.format(mode="LOCK_EX")) == "busy"
    assert _elsewhere(file, TRY_FLOCK.format(mode="LOCK_EX")) == "got it"


def test_record_locks_are_per_range_and_per_process(file: Path) -> None:
    with file.open("rb+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX, 10, 20)
        assert _elsewhere(file, TRY_LOCKF.format(mode="LOCK_EX", length=10, start=20)) == "busy"
        assert _elsewhere(file, TRY_LOCKF.format(mode="LOCK_SH", length=1, start=29)) == "busy"
        assert _elsewhere(file, TRY_LOCKF.format(mode="LOCK_EX", length=20, start=0)) == "got it"
        assert _elsewhere(file, TRY_LOCKF.format(mode="LOCK_EX", length=0, start=30)) == "got it"
        fcntl.lockf(held, fcntl.LOCK_UN, 5, 20)
        assert _elsewhere(file, TRY_LOCKF.format(mode="LOCK_EX", length=5, start=20)) == "got it"
        fcntl.lockf(held, fcntl.LOCK_SH, 5, 25)
        assert _elsewhere(file, TRY_LOCKF.format(mode="LOCK_SH", length=5, start=25)) == "got it"


def test_any_close_drops_record_locks(file: Path) -> None:
    with file.open("rb+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        file.open("rb").close()
        assert _elsewhere(file, TRY_LOCKF.format(mode="LOCK_EX", length=0, start=0)) == "got it"


def test_a_waiting_lock_is_granted_when_the_holder_goes(file: Path) -> None:
    code = "print('started', flush=True); fcntl.lockf(fd, fcntl.LOCK_EX); print('locked')"
    program = f"import os, fcntl, sys\nfd = os.open(sys.argv[1], os.O_RDWR)\n{code}"
    with file.open("rb+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        waiter = subprocess.Popen(
            [sys.executable, "-c", program, file], stdout=subprocess.PIPE, text=True
        )
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "started\n"
        assert waiter.poll() is None
        fcntl.lockf(held, fcntl.LOCK_UN)
        out, _ = waiter.communicate(timeout=20)
    assert out == "locked\n"


def test_who_holds_it(file: Path) -> None:
    with file.open("rb+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX, 10, 20)
        ask = "import struct\nq = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)\n"
        show = "print(*struct.unpack('hhqqi4x', fcntl.fcntl(fd, fcntl.F_GETLK, q)))"
        answer = _elsewhere(file, ask + show)
    assert answer == f"{fcntl.F_WRLCK} 0 20 10 {os.getpid()}"


def test_open_file_description_locks(file: Path) -> None:
    query = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
    with file.open("rb+") as one, file.open("rb+") as two:
        fcntl.fcntl(one, F_OFD_SETLK, query)
        with fails(errno.EAGAIN):
            fcntl.fcntl(two, F_OFD_SETLK, query)
        file.open("rb").close()
        with fails(errno.EAGAIN):
            fcntl.fcntl(two, F_OFD_SETLK, query)
    assert _elsewhere(file, TRY_LOCKF.format(mode="LOCK_EX", length=0, start=0)) == "got it"


@pytest.mark.parametrize("take", [fcntl.flock, fcntl.lockf], ids=["flock", "lockf"])
def test_a_killed_holder_lets_go(file: Path, take: Callable[[int, int], object]) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        fd = os.open(file, os.O_RDWR)
        take(fd, fcntl.LOCK_EX)
        os.write(tell, b"x")
        os.read(os.pipe()[0], 1)  # for ever
        os._exit(1)
    os.read(ready, 1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(tell)
    with file.open("rb+") as stream:
        take(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
