"""A hot copy of the index is never older than the interval by much, however often one restarts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from cafs import storefile
from cafs.errors import DaemonError
from cafs.index import copyplace, pages
from cafs.newstore import create
from cafs.operate import index_copy
from cafs.operate.index_copy import IndexCopier, copy_index
from cafs.store import open_store
from cafs.types import ROOT
from tests.conftest import ROOT as REPOSITORY
from tests.conftest import RunCafs
from tests.unit.small_store import OPTIONS, PARAMS, write

HOURLY = replace(OPTIONS, index_copy_interval=3600.0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


def _aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def _due_s(store: Path) -> float:
    async def ask() -> float:
        async with open_store(store, HOURLY) as opened:
            return IndexCopier(opened).due_s()

    return trio.run(ask)


def test_the_next_copy_is_due_an_interval_after_the_last_also_over_a_restart(store: Path) -> None:
    copy_index(store)
    copy = store / copyplace.DIRECTORY / pages.FILE
    assert _due_s(store) == pytest.approx(3600, abs=60)
    _aged(copy, 3000)
    assert _due_s(store) == pytest.approx(600, abs=60)
    _aged(copy, 100_000)
    assert _due_s(store) == 0
    _aged(copy, -100_000)
    assert _due_s(store) == 3600, "a clock that was set back keeps nobody waiting for longer"


def test_the_first_copy_is_due_an_interval_after_the_store_was_made(store: Path) -> None:
    assert _due_s(store) == pytest.approx(3600, abs=60)
    _aged(store / storefile.NAME, 3000)
    assert _due_s(store) == pytest.approx(600, abs=60)


def test_a_store_that_does_not_say_when_it_was_made_is_taken_for_new(store: Path) -> None:
    async def ask() -> float:
        async with open_store(store, HOURLY) as opened:
            (store / storefile.NAME).unlink()
            return IndexCopier(opened).due_s()

    assert trio.run(ask) == pytest.approx(3600, abs=60)


def test_a_copy_that_is_overdue_is_made_at_the_start_and_once(store: Path) -> None:
    copy_index(store)
    copy = store / copyplace.DIRECTORY / pages.FILE
    _aged(copy, 100_000)

    async def serve() -> float:
        async with open_store(store, HOURLY) as opened, trio.open_nursery() as nursery:
            await write(opened, ROOT, b"new", b"something")
            await opened.sync_all()
            copier = IndexCopier(opened)
            nursery.start_soon(copier.run)
            with trio.fail_after(60):
                while (age_s := copyplace.age_s(store, time.time_ns())) is None or age_s > 3600:
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
            return copier.due_s()

    assert trio.run(serve) == pytest.approx(3600, abs=60)


def test_an_attempt_that_failed_is_made_again_after_the_interval(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _aged(store / storefile.NAME, 100_000)
    attempts = 0

    async def failing(_copier: IndexCopier) -> bool:
        nonlocal attempts
        attempts += 1
        return False

    monkeypatch.setattr(IndexCopier, "once", failing)

    async def serve() -> float:
        async with open_store(store, HOURLY) as opened, trio.open_nursery() as nursery:
            copier = IndexCopier(opened)
            nursery.start_soon(copier.run)
            with trio.fail_after(60):
                while not attempts:
                    await trio.sleep(0.02)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
            return copier.due_s()

    assert trio.run(serve) == pytest.approx(3600, abs=60)
    assert attempts == 1


def test_status_tells_how_old_the_copy_is(store: Path, run_cafs: RunCafs) -> None:
    assert json.loads(run_cafs("status", store, "--json").stdout)["index_copy_age_s"] is None
    assert ["index", "copy", "age", "-"] in [
        line.split() for line in run_cafs("status", store).stdout.splitlines()
    ]
    copy_index(store)
    _aged(store / copyplace.DIRECTORY / pages.FILE, 7200)
    age_s = json.loads(run_cafs("status", store, "--json").stdout)["index_copy_age_s"]
    assert age_s == pytest.approx(7200, abs=60)
    assert "index copy age" in run_cafs("status", store).stdout

    async def ask() -> object:
        async with open_store(store, HOURLY) as opened:
            return opened.status()["index_copy_age_s"]

    assert trio.run(ask) == pytest.approx(7200, abs=60)


# -- what a killed daemon leaves ---------------------------------------------------------------

_SLOW = """
import sys
from pathlib import Path
from types import SimpleNamespace
import lmdb
from cafs.operate import index_copy

class Slow:
    def __init__(self, *args, **settings):
        self._env = lmdb.open(*args, **settings)
    def copy(self, path, compact):
        place = Path(path) / "data.mdb"
        place.write_bytes(b"half of a copy")
        print("half", flush=True)
        sys.stdin.readline()
        place.unlink()
        self._env.copy(path, compact=compact)
        print("all", flush=True)
        sys.stdin.readline()
    def close(self):
        self._env.close()

index_copy.lmdb = SimpleNamespace(open=Slow, Error=lmdb.Error)
index_copy.copy_index(Path(sys.argv[1]))
"""


@contextmanager
def _slow_copy(store: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that copies the index, and stops when half and when all of it is written."""
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW, store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        bufsize=0,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _said(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    return child.stdout.readline()


def _go_on(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.write(b"\n")


def _waits_for_a_lock(pid: int) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any(" -> FLOCK " in line and f" {pid} " in line for line in lines)


def test_two_processes_that_copy_do_not_get_in_each_other_s_way(store: Path) -> None:
    """As a child of a daemon that was killed does, and the child of the next one."""
    place = store / copyplace.DIRECTORY
    with _slow_copy(store) as one:
        assert _said(one) == b"half\n"
        _go_on(one)
        assert _said(one) == b"all\n"
        with _slow_copy(store) as other:
            assert other.stdout is not None
            os.set_blocking(other.stdout.fileno(), False)
            deadline = time.monotonic() + 30
            while not _waits_for_a_lock(other.pid) and not other.stdout.read(64):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            _go_on(one)
            assert one.wait(30) == 0
            assert pages.audit(place, lock=False).faults == []
            os.set_blocking(other.stdout.fileno(), True)
            _go_on(other)
            _go_on(other)
            assert other.wait(30) == 0
    assert pages.audit(place, lock=False).faults == []


def test_who_copies_for_a_daemon_that_is_gone_puts_nothing_in_place(store: Path) -> None:
    with pytest.raises(DaemonError, match="gone"):
        copy_index(store, os.getppid() + 1)
    assert list((store / copyplace.DIRECTORY).iterdir()) == []
    copy_index(store, os.getppid())
    assert copyplace.made_ns(store) is not None


def test_what_is_void_goes_when_a_store_is_opened(store: Path) -> None:
    void = store / copyplace.DIRECTORY / "new", store / "index" / "shrunk"
    for each in void:
        each.mkdir(parents=True)
        (each / pages.FILE).write_bytes(b"half of a copy")

    async def look() -> None:
        async with open_store(store, HOURLY):
            assert not any(each.exists() for each in void)

    trio.run(look)


def test_room_is_looked_for_when_what_is_void_has_gone(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    void = store / copyplace.DIRECTORY / "new"

    async def copy() -> None:
        async with open_store(store, HOURLY) as opened:
            void.mkdir(parents=True)
            monkeypatch.setattr(opened.space, "free", lambda: 0 if void.exists() else 1 << 40)
            assert await IndexCopier(opened).once()

    trio.run(copy)
    assert copyplace.made_ns(store) is not None


def test_the_cache_gives_way_to_a_copy(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = store / "cache" / f"{7:012x}"
    file.parent.mkdir()
    file.write_bytes(bytes(1 << 20))

    async def copy() -> None:
        async with open_store(store, HOURLY) as opened:
            needed = opened.environment.used_bytes() + index_copy._MARGIN
            missing = 2 << 20
            monkeypatch.setattr(
                opened.space, "free", lambda: needed - (missing if file.exists() else 0)
            )
            assert not await IndexCopier(opened).once()
            assert file.exists(), "it would not have been enough"
            missing = 1
            assert await IndexCopier(opened).once()
            assert not file.exists()

    trio.run(copy)
