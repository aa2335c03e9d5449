"""What the machines that try a whole store have in common.

Owns the store's directory and the thread that has it open.  Invariant: whenever a store is opened
again every count in it has been found right.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from cafs.newstore import create
from cafs.store import Store
from tests.model.storethread import StoreThread
from tests.model.test_draft import SMALL
from tests.unit.small_store import assert_sound

T = TypeVar("T")


class StoreMachineBase(RuleBasedStateMachine):
    """A machine with a store of its own, which can be closed, killed and opened again."""

    def __init__(self) -> None:
        super().__init__()
        self._base = Path(tempfile.mkdtemp(prefix="cafs-machine-"))
        self._path = self._base / "store"
        create(self._path, SMALL)
        self._thread = StoreThread(self._path)

    def teardown(self) -> None:
        self._thread.close()
        shutil.rmtree(self._base)

    def _run(self, work: Callable[[Store], Awaitable[T]]) -> T:
        return self._thread.run(work)

    def _open_again(self) -> None:
        assert_sound(self._path)
        self._thread = StoreThread(self._path)


def run_machine(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """Let a machine take so many *steps*, in as many *examples*."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            max_examples=examples,
            stateful_step_count=steps,
        ),
    )
