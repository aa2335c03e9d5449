"""The store's lock: one holder, no leftovers of a killed one, and waiting for its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cafs.config import StoreParams
from cafs.errors import AccessError, StoreBusyError
from cafs.lock import NAME, Holder, StoreLock, holder, wait_until_free
from cafs.newstore import create

_HOLD = (
    "import sys, pathlib; from cafs.lock import StoreLock\n"
    "lock = StoreLock(pathlib.Path(sys.argv[1]), pathlib.Path('/mnt'))\n"
    "print('held', flush=True); sys.stdin.read()"
)


def test_one_holder(tmp_path: Path) -> None:
    first = StoreLock(tmp_path, Path("/mnt/x"))
    with pytest.raises(StoreBusyError, match=f"process {os.getpid()}, mounted on /mnt/x"):
        StoreLock(tmp_path)
    assert holder(tmp_path) == Holder(os.getpid(), Path("/mnt/x"))
    first.release()
    first.release()
    assert holder(tmp_path) is None
    StoreLock(tmp_path).release()


def test_without_a_mountpoint(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path)
    assert str(holder(tmp_path)) == f"process {os.getpid()}"
    lock.release()


def test_a_directory_without_a_lock_is_free(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert holder(tmp_path / "missing") is None
    assert wait_until_free(tmp_path, 0)


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert holder(tmp_path) == Holder(other.pid, Path("/mnt"))
        assert not wait_until_free(tmp_path, 0.01)
        other.kill()
        assert wait_until_free(tmp_path, 10)
    assert holder(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"pid": "x"}', b"\xff\x00"])
def test_content_that_says_nothing(tmp_path: Path, content: bytes) -> None:
    lock = StoreLock(tmp_path)
    (tmp_path / NAME).write_bytes(content)
    assert str(holder(tmp_path)) == "another process"
    lock.release()


def test_a_process_that_is_dead_is_told_from_one_that_lives(tmp_path: Path) -> None:
    assert Holder(os.getpid(), None).alive
    assert Holder(0, None).alive
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        assert Holder(other.pid, None).alive
        other.kill()
        # Without taking its status: dead, but still in the process table.
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert not Holder(other.pid, None).alive
    assert not Holder(other.pid, None).alive


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a store away")
def test_root_changes_nothing_in_a_store_of_another_user(tmp_path: Path) -> None:
    store = tmp_path / "store"
    create(store, StoreParams())
    (store / NAME).unlink()
    for path in (store, *store.rglob("*")):
        os.chown(path, 65534, 65534)
    with pytest.raises(AccessError, match="belongs to user nobody, who could no longer") as caught:
        StoreLock(store)
    assert "sudo -u nobody cafs" in caught.value.advice
    assert not (store / NAME).exists(), "it would be root's"
    StoreLock(store, Path("/mnt")).release()
    os.chown(store / "store.toml", 0, 0)
    StoreLock(store).release()
