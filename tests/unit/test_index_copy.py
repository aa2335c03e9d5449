"""A hot copy of the index is never older than the interval by much, however often one restarts."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from cafs import storefile
from cafs.index import copyplace, pages
from cafs.newstore import create
from cafs.operate.index_copy import IndexCopier, copy_index
from cafs.store import open_store
from cafs.types import ROOT
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
