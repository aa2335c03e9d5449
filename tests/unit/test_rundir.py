"""Whose nginx's directory is, and that a `cafs serve` that was killed leaves no secret in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cafs.errors import StoreBusyError
from cafs.serve import rundir
from tests.conftest import ROOT


def _fill(run_dir: Path) -> None:
    for name in (rundir.CONFIG, rundir.SECRET_INCLUDE, rundir.SECRET_INCLUDE + ".new"):
        (run_dir / name).write_text("text")
    (run_dir / "proxy").mkdir()


def test_a_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    claim = rundir.Claim(run_dir)
    _fill(run_dir)
    with pytest.raises(StoreBusyError, match="in use by another cafs serve"):
        rundir.Claim(run_dir)
    assert rundir.clear_dead(run_dir) is False
    assert (run_dir / rundir.CONFIG).exists()
    rundir.clear(run_dir)
    claim.release()
    assert not run_dir.exists()
    rundir.Claim(run_dir).release()
    assert not run_dir.exists()


def test_what_the_dead_left_is_cleared(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    script = (
        "import pathlib, sys; from cafs.serve import rundir\n"
        f"claim = rundir.Claim(pathlib.Path({str(run_dir)!r})); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        _fill(run_dir)
        assert rundir.clear_dead(run_dir) is False
        owner.send_signal(signal.SIGKILL)
    assert sorted(os.listdir(run_dir)) == sorted(
        [rundir.CONFIG, rundir.SECRET_INCLUDE, rundir.SECRET_INCLUDE + ".new", "proxy", rundir.LOCK]
    )
    assert rundir.clear_dead(run_dir) is True
    assert not run_dir.exists()


def test_what_was_written_by_hand_stays(tmp_path: Path) -> None:
    _fill(tmp_path)
    assert rundir.clear_dead(tmp_path) is False
    assert (tmp_path / rundir.SECRET_INCLUDE).exists()
    assert rundir.clear_dead(tmp_path / "nothing there") is False


def test_files_of_others_keep_the_directory(tmp_path: Path) -> None:
    claim = rundir.Claim(tmp_path)
    _fill(tmp_path)
    (tmp_path / "theirs").touch()
    rundir.clear(tmp_path)
    claim.release()
    assert os.listdir(tmp_path) == ["theirs"]
