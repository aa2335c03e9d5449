"""Background tasks: a defect in one ends neither the mount nor the task for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cafs.mount import run
from cafs.mount.control import ControlSocket
from cafs.mount.damage import DamageReporter
from cafs.mount.farewell import Farewell
from cafs.mount.invalidate import Invalidator
from cafs.mount.known import Known
from cafs.newstore import create
from cafs.operate.ageing import Ageing
from cafs.operate.compact import Compactor
from cafs.operate.index_copy import IndexCopier
from cafs.operate.sweep import Sweeper
from cafs.store import open_store
from tests.unit.small_store import OPTIONS, PARAMS

OFTEN = replace(OPTIONS, commit_interval=0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


def _failing(begun: Counter[str], name: str) -> Callable[[Any], Awaitable[None]]:
    async def task(_self: Any) -> None:
        begun[name] += 1
        raise KeyError(f"as if {name} had a defect")

    return task


def test_a_defect_in_a_task_of_the_mount_does_not_end_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun: Counter[str] = Counter()
    tasks = (Sweeper, Compactor, IndexCopier, Ageing)
    for each in tasks:
        monkeypatch.setattr(each, "run", _failing(begun, each.__name__))

    async def main() -> None:
        async with open_store(path, OFTEN) as store, trio.open_nursery() as nursery:
            damage, told = DamageReporter(store), Invalidator(Known(store.tree))
            with Farewell() as farewell, ControlSocket(path) as control:
                ready = trio.Event()
                attend = partial(run._attend, store, control, damage, told, path, farewell)
                nursery.start_soon(attend, OFTEN, ready.set, (), nursery)
                await ready.wait()
                with trio.fail_after(20):
                    while len(begun) < len(tasks) or min(begun.values()) < 2:
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert "it begins anew" in caplog.text


def test_a_store_that_is_closed_at_once_has_no_defect(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for _ in range(3):
            async with open_store(path, OFTEN):
                pass
            async with open_store(path, OFTEN):
                await trio.lowlevel.checkpoint()

    trio.run(main)
    assert not [record for record in caplog.records if record.levelname != "INFO"]
