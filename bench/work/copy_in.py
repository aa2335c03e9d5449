"""Copy a real tree in with ``cp -a`` and a final sync; then the same tree once more."""

from __future__ import annotations

from bench.sides import Side
from bench.work.base import Measure, Take, Workload, copy, read_all


class CopyIn(Workload):
    """The first copy is new to the store, the second one is known to it."""

    name = "copy_in"
    measures = (
        Measure("copy_in", "copy a tree in (cp -a, sync)", "s"),
        Measure("copy_in_again", "copy the same tree in again", "s"),
    )

    def setup(self, side: Side) -> None:
        read_all(self.context.tree)

    def run(self, side: Side, repetition: int, take: Take) -> None:
        side.fresh()
        for key in ("copy_in", "copy_in_again"):

            def copy_and_sync(name: str = key) -> None:
                copy(self.context.tree, side.root / name)
                side.settle()

            take(key, copy_and_sync)
