"""Fixtures and rules that all tests share.

Invariant: a test leaves nothing behind.  No mount, no thread, no process of its own outlives
it, and what it forgot to close is reported as its own fault, not as a later test's.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cafs import config
from cafs.mount.mountpoint import mounts_of_cafs
from tests.mount import mounted

# Where the caller's shell forbids bytecode files, each process that a test starts would compile
# all of cafs anew, which takes longer than what it is started for.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

RunCafs = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parent.parent
"""Of this repository."""


MOST_WORKERS = 8
"""More would wait for one disk, and the tests that have time limits with them."""
RUN_VARIABLE = "PYTEST_RUN_ID"
"""In the environment of every process that this run starts, and of what those start."""


def pytest_configure(config: pytest.Config) -> None:
    """A test that crashes the interpreter is to say where it was."""
    if not faulthandler.is_enabled():
        faulthandler.enable()
    # Below nohup, or in the background of a script, these are ignored, and so they would be by
    # every process that a test starts.  A handler is not handed on.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A run of files or single tests has one process: its output comes as it is printed."""
    if not any(os.path.isdir(argument) for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0))
    return min(cores, MOST_WORKERS) if cores > 1 else 0


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported by now is never garbage: leave it out of each test's collection."""
    gc.collect()
    gc.freeze()


_PENDING_BEFORE = pytest.StashKey[set[Path]]()


def _pending_files() -> set[Path]:
    return set(Path("/dev/shm").glob("cafs-*.pending*"))


def _is_worker(session: pytest.Session) -> bool:
    return hasattr(session.config, "workerinput")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember what is not this run's."""
    if not _is_worker(session):
        session.config.stash[_PENDING_BEFORE] = _pending_files()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take away the pending files of daemons that tests killed.

    When all workers have ended: a daemon that one of them killed may be about to be started again.
    """
    if _is_worker(session):
        return
    before = session.config.stash[_PENDING_BEFORE]
    for path in _pending_files() - before:
        try:
            pid = int.from_bytes(path.read_bytes()[24:32], "little")
        except FileNotFoundError:
            continue
        # Other runs, and daemons, may be under way on this machine.
        if not os.path.exists(f"/proc/{pid}"):
            path.unlink(missing_ok=True)


@pytest.fixture(autouse=True, scope="session")
def _no_mount_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    # Only below directories of this process: other runs and workers may be under way.
    ours = {tmp_path_factory.getbasetemp(), *mounted.made_directories}
    left = [mount for mount in mounts_of_cafs() if ours & set(mount.path.parents)]
    assert not left, f"tests left mounts behind: {left}"
    kept = [path for path in mounted.made_directories if path.exists()]
    assert not kept, f"tests left directories behind: {kept}"


@pytest.fixture(autouse=True, scope="session")
def _no_process_left_behind() -> Iterator[None]:
    run = f"{RUN_VARIABLE}={os.getpid()}-{time.monotonic_ns()}"
    os.environ[RUN_VARIABLE] = run.partition("=")[2]
    yield
    # The index writer of a daemon that was killed finishes its transaction.
    end = time.monotonic() + 10
    while (left := _processes_of(run.encode())) and time.monotonic() < end:
        select.select([], [], [], 0.05)
    assert not left, f"tests left processes behind: {left}"


def _processes_of(run: bytes) -> list[str]:
    """Command and test of each process that has this in its environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it ended
        if run in environment and command:
            tests = [each for each in environment if each.startswith(b"PYTEST_CURRENT_TEST=")]
            found.append(f"{process.name} {command!r} {tests}")
    return found


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine or of the caller's shell reaches a test."""
    for name in (config.STORE_VARIABLE, config.FILE_VARIABLE, "CAFS_DEBUG", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(config, "DEFAULT_FILE", Path("/nonexistent/cafs.toml"))


@pytest.fixture(autouse=True)
def _clean_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # What is collected here was leaked by this test: its ResourceWarning counts against it.
    gc.collect()
    left = [
        thread
        for thread in threading.enumerate()
        if thread not in before and not thread.daemon and thread.is_alive()
    ]
    assert not left, f"the test left threads behind: {left}"


@pytest.fixture
def run_cafs() -> RunCafs:
    """Runs the program in a process of its own, as a shell would."""

    def run(
        *arguments: str | os.PathLike[str],
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        user: int | None = None,
        groups: Sequence[int] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "cafs.cli.main",
                *[os.fspath(argument) for argument in arguments],
            ],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
            cwd=cwd,
            user=user,
            extra_groups=groups,
            check=False,
        )

    return run
