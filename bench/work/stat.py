"""lstat of each file of a real tree, and of as many names that are not there."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from bench.sides import Side
from bench.work.base import Measure, Take, Target, Workload, copy

_LOOPS = 100


class Stat(Workload):
    """Cold asks the filesystem for each name; warm asks the kernel's caches only."""

    name = "stat"
    floor = True
    measures = (
        Measure("stat_there_cold", "stat existing files, cold", "1/s"),
        Measure(
            "stat_there_warm", "stat existing files, again", "1/s", Target("ratio", "at least", 0.9)
        ),
        Measure("stat_missing_cold", "stat missing names, cold", "1/s"),
        Measure(
            "stat_missing_warm",
            "stat missing names, again",
            "1/s",
            Target("ratio", "at least", 0.9),
        ),
    )

    def setup(self, side: Side) -> None:
        copy(self.context.tree, side.root / "tree")
        side.settle()
        there = [
            os.fsencode(os.path.join(directory, name))
            for directory, _, names in os.walk(side.root / "tree")
            for name in names
        ]
        self.context.random("stat").shuffle(there)
        self._list(side, "there").write_bytes(b"".join(path + b"\0" for path in there))
        missing = b"".join(path + b".missing\0" for path in there)
        self._list(side, "missing").write_bytes(missing)

    def run(self, side: Side, repetition: int, take: Take) -> None:
        client = self.context.client
        for what in ("there", "missing"):
            paths = self._list(side, what)
            side.cold()
            take(f"stat_{what}_cold", partial(client, "stat", paths, 1, what))
            take(f"stat_{what}_warm", partial(client, "stat", paths, _LOOPS, what))

    def _list(self, side: Side, what: str) -> Path:
        return self.context.scratch / f"stat-{side.name}-{what}"
