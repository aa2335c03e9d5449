"""Fixtures and rules that all tests share.

Invariant: a test leaves nothing behind.  No mount, no thread, no process of its own outlives
it, and what it forgot to close is reported as its own fault, not as a later test's.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cafs import config
from cafs.mount.mountpoint import mounts_of_cafs

RunCafs = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parent.parent
"""Of this repository."""


def pytest_configure(config: pytest.Config) -> None:
    """A test that crashes the interpreter is to say where it was."""
    if not faulthandler.is_enabled():
        faulthandler.enable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported by now is never garbage: leave it out of each test's collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_mount_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    # Only below the directory of this run: other runs may be under way on this machine.
    ours = tmp_path_factory.getbasetemp()
    left = [mount for mount in mounts_of_cafs() if ours in mount.path.parents]
    assert not left, f"tests left mounts behind: {left}"


@pytest.fixture(autouse=True, scope="session")
def _no_pending_file_left_behind() -> Iterator[None]:
    """Daemons that tests kill cannot take their pending files away."""
    before = set(Path("/dev/shm").glob("cafs-*.pending*"))
    yield
    for path in set(Path("/dev/shm").glob("cafs-*.pending*")) - before:
        try:
            pid = int.from_bytes(path.read_bytes()[24:32], "little")
        except FileNotFoundError:
            continue
        # Other runs, and daemons, may be under way on this machine.
        if not os.path.exists(f"/proc/{pid}"):
            path.unlink(missing_ok=True)


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
