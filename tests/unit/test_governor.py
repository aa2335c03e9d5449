"""The governor: a background job gets much of the time while nobody minds, and little else."""

from __future__ import annotations

import random
import time

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs import latency
from cafs.clock import SystemClock
from cafs.latency import KEPT_MAX, Latency
from cafs.operate.governor import (
    REST_MAX_S,
    ROUND_S,
    SHARE_FIRST,
    SHARE_MAX,
    SHARE_MIN,
    Governor,
    quantile,
)


class Machine:
    """A clock of its own, and requests whose time depends on whether the job works."""

    def __init__(self, at_rest: float, at_work: float, per_second: float = 100.0) -> None:
        self.now = 0.0
        self.rested = 0.0
        self.worked = 0.0
        self.at_rest, self.at_work = at_rest, at_work
        self._per_second = per_second
        self._random = random.Random(1)
        self.times = Latency()
        self.governor = Governor(self.times, self, self.sleep)
        self.governor.begin()

    def monotonic(self) -> float:
        return self.now

    def now_ns(self) -> int:
        return int(self.now * 1e9)

    def _pass(self, seconds: float, typical: float) -> None:
        for _ in range(round(seconds * self._per_second)):
            self.times.note(latency.HTTP, typical * self._random.uniform(0.8, 1.2))
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        self.rested += seconds
        self._pass(seconds, self.at_rest)
        await trio.lowlevel.checkpoint()

    def work(self, seconds: float, step: float = 0.1) -> None:
        """The job works for so long, in steps."""

        async def run() -> None:
            end = self.worked + seconds
            while self.worked < end:
                self._pass(step, self.at_work)
                self.worked += step
                await self.governor.pace()

        trio.run(run)

    @property
    def share(self) -> float:
        return self.worked / (self.worked + self.rested)


def test_while_nobody_waits_it_works_nearly_all_the_time() -> None:
    machine = Machine(0.001, 0.001, per_second=0)
    assert machine.governor.share == SHARE_FIRST
    machine.work(20)
    assert machine.governor.share == SHARE_MAX
    assert machine.governor.yields == 0


def test_while_nobody_feels_it_too() -> None:
    machine = Machine(0.010, 0.011)
    machine.work(20)
    assert machine.governor.share == SHARE_MAX


def test_when_others_wait_it_gives_way_at_once_and_comes_back_slowly() -> None:
    machine = Machine(0.010, 0.010)
    machine.work(20)
    machine.at_work = 0.050
    machine.work(6 * (ROUND_S + 0.1))
    assert machine.governor.share < 2 * SHARE_MIN
    before = machine.share
    machine.work(10)
    assert machine.share < before
    assert machine.governor.share == pytest.approx(SHARE_MIN, abs=0.06)
    machine.at_work = 0.010
    machine.work(2)
    assert machine.governor.share < 0.7
    machine.work(10)
    assert machine.governor.share == SHARE_MAX


def test_what_is_short_enough_is_not_compared() -> None:
    machine = Machine(0.0001, 0.003)
    machine.work(20)
    assert machine.governor.share == SHARE_MAX


def test_a_slow_machine_is_no_reproach() -> None:
    """It is as slow at rest: the job is not to blame."""
    machine = Machine(0.200, 0.200)
    machine.work(20)
    assert machine.governor.share == SHARE_MAX


def test_what_is_normal_may_change() -> None:
    machine = Machine(0.010, 0.010)
    machine.work(10)
    machine.at_rest = machine.at_work = 0.100
    machine.work(60)
    assert machine.governor.share == SHARE_MAX


def test_one_late_time_is_chance() -> None:
    machine = Machine(0.001, 0.001)
    for _ in range(20):
        machine.times.note(latency.LOOP, 10.0)
        machine.work(1)
    assert machine.governor.share == SHARE_MAX


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.floats(0.0, 100.0), max_size=30),
    times=st.lists(st.tuples(st.sampled_from(latency.SOURCES), st.floats(0, 1e6)), max_size=50),
)
def test_the_share_stays_in_bounds(steps: list[float], times: list[tuple[str, float]]) -> None:
    machine = Machine(0.0, 0.0, per_second=0)
    for step in steps:
        for source, seconds in times:
            machine.times.note(source, seconds)
        before = machine.rested
        machine.work(step or 1e-9, step or 1e-9)
        assert SHARE_MIN <= machine.governor.share <= SHARE_MAX
        assert machine.rested - before <= REST_MAX_S + 1e-6
    machine.governor.end()
    assert machine.governor.worked_s == pytest.approx(sum(step or 1e-9 for step in steps))


def test_nothing_is_kept_while_nobody_looks() -> None:
    times = Latency()
    times.note(latency.HTTP, 1.0)
    assert times.take(latency.HTTP) == []
    times.wanted = True
    for number in range(KEPT_MAX + 5):
        times.note(latency.HTTP, number)
    assert len(times.take(latency.HTTP)) == KEPT_MAX
    assert times.take(latency.HTTP) == []


def test_the_quantile() -> None:
    assert quantile([3.0], 0.9) == 3.0
    assert quantile([1.0] * 89 + [2.0] * 11, 0.9) == 2.0
    assert quantile([1.0] * 92 + [2.0] * 8, 0.9) == 1.0


def test_a_loop_that_is_held_up_is_noticed() -> None:
    """The real probe on the real loop: a step that holds it up shows in the times."""
    times = Latency()
    governor = Governor(times, SystemClock())

    async def run() -> list[float]:
        governor.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(governor.probe)
            await trio.testing.wait_all_tasks_blocked()
            _hold(0.2)
            while not (found := times.take(latency.LOOP)):
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        return found

    assert trio.run(run)[0] > 0.1


def _hold(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def delayed(machine: Machine, seconds: float, requests: int) -> None:
    """Rounds of work in which the event loop is late, and so many are served."""
    for _ in range(10):
        machine.times.requests += requests
        for _ in range(10):
            machine.times.note(latency.LOOP, seconds)
        machine.work(0.3)


def test_a_late_loop_counts_for_less_while_nobody_is_served() -> None:
    alone, served = Machine(0, 0, per_second=0), Machine(0, 0, per_second=0)
    delayed(alone, 0.015, 0)
    delayed(served, 0.015, 1)
    assert alone.governor.share > SHARE_FIRST
    assert served.governor.share < SHARE_FIRST
    delayed(alone, 0.1, 0)
    assert alone.governor.share < SHARE_FIRST


def test_it_listens_before_the_first_step() -> None:
    """On a machine that is slow anyway the first round is no reproach either."""
    machine = Machine(0.2, 0.2)
    trio.run(machine.governor.listen)
    machine.work(2)
    assert machine.governor.yields == 0


def test_with_nobody_to_give_way_to_it_never_rests() -> None:
    machine = Machine(0.001, 10.0)
    machine.governor = Governor(machine.times, machine, machine.sleep, alone=True)
    machine.work(10)
    assert machine.rested == 0
