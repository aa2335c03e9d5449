"""How much of its time a background job may work, so that those who are served do not feel it.

Additive increase, multiplicative decrease: while the times that others wait are as they are when
the job rests, it gets a little more; when they are not, it gets half.  Each source of times is
compared with itself, at rest and at work, so a slow disk or a busy machine is no reproach.
Invariant: the share stays between SHARE_MIN and SHARE_MAX: the job always gets on, and always
rests a little, because it is at rest that one learns what is normal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from cafs import latency
from cafs.clock import Clock
from cafs.latency import Latency

SHARE_MIN: Final = 0.1
"""A store that is always busy is to shrink, too."""
SHARE_MAX: Final = 0.95
SHARE_FIRST: Final = 0.25
STEP_UP: Final = 0.05
ROUND_S: Final = 0.25
"""Time at work after which the share is looked at again."""
REST_MAX_S: Final = ROUND_S / SHARE_MIN
"""After a step that took very long."""
PROBE_S: Final = 0.02
"""How often the event loop's own delay is measured, while there is a job."""
TOLERANCE: Final = 1.5
"""So many times the time at rest is too long."""
FLOORS: Final = {latency.LOOP: 0.004, latency.HTTP: 0.004, latency.READ: 0.02}
"""Seconds below which nobody minds, by source."""
FLOOR_UNSERVED: Final = 0.02
"""The same for the event loop's delay while nobody asks the daemon for anything: then it only
says how busy the machine is, and the job's low priority is an answer to that already."""
LISTEN_S: Final = 0.2
HIGH: Final = 0.9
"""The quantile that is compared: a single late one is chance."""
ENOUGH: Final = 11
"""So many times are gathered before they are compared: of fewer, one late one decides."""
MEMORY: Final = 0.3
"""How much the newest rest counts in what is normal."""


def quantile(times: list[float], share: float) -> float:
    """The time that *share* of them do not exceed.  *times* must not be empty."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Governor:
    """Gives a job its share of the time.  Belongs to the event loop."""

    def __init__(
        self,
        times: Latency,
        clock: Clock,
        sleep: Callable[[float], Awaitable[object]] = trio.sleep,
        *,
        alone: bool = False,
    ) -> None:
        """*alone*: there is nobody to give way to."""
        self._times = times
        self._clock = clock
        self._sleep = sleep
        self._alone = alone
        self.share = SHARE_FIRST
        """Part of its time that the job works, 0 to 1."""
        self.yields = 0
        """How often others had to wait too long, and the share was halved."""
        self.worked_s = 0.0
        """Time at work, of all jobs."""
        self._normal: dict[str, float] = {}
        self._at_rest: dict[str, list[float]] = {source: [] for source in latency.SOURCES}
        self._working: dict[str, list[float]] = {source: [] for source in latency.SOURCES}
        self._requests = times.requests
        self._since = 0.0
        self._at_work = 0.0

    def begin(self) -> None:
        """A job begins."""
        self._times.wanted = True
        self._forget()
        self.resume()

    async def listen(self) -> None:
        """Rest before the first step, so that it is known what is normal."""
        if not self._alone:
            await self._sleep(LISTEN_S)
            self._learn()
        self.resume()

    def resume(self) -> None:
        """What went on since the last step was not work, but waiting for something else."""
        self._since = self._clock.monotonic()

    def end(self) -> None:
        """It has ended, or was stopped."""
        self._times.wanted = False
        self._forget()

    def _forget(self) -> None:
        for source in latency.SOURCES:
            self._times.take(source)
            self._at_rest[source].clear()
            self._working[source].clear()
        self._at_work = 0.0

    async def pace(self) -> None:
        """To be awaited by the job between two steps: rests for as long as is due."""
        worked = max(0.0, self._clock.monotonic() - self._since)
        self.worked_s += worked
        self._at_work += worked
        if self._alone or self._at_work < ROUND_S:
            await self._sleep(0)
        else:
            # In one piece: what is normal shows itself only after a while.
            due = self._at_work
            self._at_work = 0.0
            self._judge()
            await self._sleep(min(REST_MAX_S, due * (1.0 - self.share) / self.share))
            self._learn()
        self._since = self._clock.monotonic()

    def _learn(self) -> None:
        for source, gathered in self._at_rest.items():
            gathered += self._times.take(source)
            if len(gathered) < ENOUGH:
                continue
            high = quantile(gathered, HIGH)
            before = self._normal.get(source, high)
            self._normal[source] = before + MEMORY * (high - before)
            gathered.clear()

    def _judge(self) -> None:
        served = self._times.requests != self._requests
        self._requests = self._times.requests
        late = [source for source in latency.SOURCES if self._is_late(source, served=served)]
        if late:
            self.yields += 1
            self.share = max(SHARE_MIN, self.share / 2)
        else:
            self.share = min(SHARE_MAX, self.share + STEP_UP)

    def _is_late(self, source: str, *, served: bool) -> bool:
        gathered = self._working[source]
        gathered += self._times.take(source)
        if len(gathered) < ENOUGH:
            return False
        high = quantile(gathered, HIGH)
        gathered.clear()
        floor = FLOORS[source] if served else max(FLOORS[source], FLOOR_UNSERVED)
        normal = max(floor, self._normal.get(source, 0.0))
        return high > TOLERANCE * normal

    async def probe(self) -> None:
        """Measure the event loop's delay, for ever: to be run beside the job."""
        while True:
            before = self._clock.monotonic()
            await trio.sleep(PROBE_S)
            late = self._clock.monotonic() - before - PROBE_S
            self._times.note(latency.LOOP, max(0.0, late))
