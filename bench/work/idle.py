"""Memory of a daemon that has nothing to do, with many files in its store."""

from __future__ import annotations

import time

from bench.sides import Side
from bench.work.base import Measure, Take, Target, Workload

_PER_DIRECTORY = 1000
_LIMIT_MIB = 150


class Idle(Workload):
    """Proportional set sizes of the daemon and its children, in MiB; ext4 has no process.

    Idle is a daemon that nobody has asked for anything for 130 s (15 s in a quick run): it gives
    back what it keeps for the next question after two minutes at most.
    """

    name = "idle"
    repeats = False
    measures = (
        Measure(
            "idle_after_start",
            "memory, started and idle",
            "MiB",
            Target("value", "at most", _LIMIT_MIB),
        ),
        Measure("idle_start_anonymous", "of that without pages of files", "MiB"),
        Measure(
            "idle_after_work",
            "memory, idle after creating all the files",
            "MiB",
            Target("value", "at most", _LIMIT_MIB),
        ),
        Measure("idle_work_anonymous", "of that without pages of files", "MiB"),
        Measure("idle_files", "files in the store meanwhile", "files"),
    )

    def run(self, side: Side, repetition: int, take: Take) -> None:
        if side.usage() is None:
            return
        context = self.context
        count = context.files or context.pick(3000, 100_000)
        for number in range(-(-count // _PER_DIRECTORY)):
            directory = side.root / f"d{number:06}"
            directory.mkdir()
            part = min(_PER_DIRECTORY, count - number * _PER_DIRECTORY)
            context.client("create", directory, part, 200, context.seed * 10_000 + number)
        side.settle()
        # What idle means here: so long nobody has asked for anything.
        rest_s = context.pick(15, 130)
        time.sleep(rest_s)
        take("idle_files", lambda: float(count))
        take("idle_after_work", lambda: _mib(side, anonymous=False))
        take("idle_work_anonymous", lambda: _mib(side, anonymous=True))
        side.cold()
        time.sleep(rest_s)
        take("idle_after_start", lambda: _mib(side, anonymous=False))
        take("idle_start_anonymous", lambda: _mib(side, anonymous=True))


def _mib(side: Side, *, anonymous: bool) -> float:
    used = side.usage()
    if used is None:
        return 0.0
    return (used.anonymous_bytes if anonymous else used.pss_bytes) / (1 << 20)
