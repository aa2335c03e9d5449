"""Copy a tree out with ``cp -a``, into memory: first with nothing cached, then again."""

from __future__ import annotations

from bench.sides import Side
from bench.work.base import Measure, Take, Workload, copy, remove


class CopyOut(Workload):
    """The target is a tmpfs, so the ratio is not diluted by a disk that both write to."""

    name = "copy_out"
    measures = (
        Measure("copy_out_cold", "copy a tree out, cold", "s"),
        Measure("copy_out_warm", "copy a tree out, warm", "s"),
    )

    def setup(self, side: Side) -> None:
        copy(self.context.tree, side.root / "tree")
        side.settle()

    def run(self, side: Side, repetition: int, take: Take) -> None:
        side.cold()
        for key in ("copy_out_cold", "copy_out_warm"):
            take(key, lambda: copy(side.root / "tree", self.context.scratch / "out"))
            remove(self.context.scratch / "out")
