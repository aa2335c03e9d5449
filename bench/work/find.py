"""``find`` over a real tree: by names alone, and by an attribute of each file."""

from __future__ import annotations

from bench.sides import Side
from bench.work.base import Measure, Take, Target, Workload, copy, quiet


class Find(Workload):
    """Cold is the first find after a start; the others find everything cached."""

    name = "find"
    floor = True
    measures = (
        Measure("find_cold", "find -type f, cold", "s"),
        Measure("find_names", "find -type f, cached tree", "s", Target("ratio", "at least", 0.9)),
        Measure(
            "find_sizes", "find -size +64k, cached tree", "s", Target("ratio", "at least", 0.9)
        ),
    )

    def setup(self, side: Side) -> None:
        copy(self.context.tree, side.root / "tree")
        side.settle()

    def run(self, side: Side, repetition: int, take: Take) -> None:
        tree = str(side.root / "tree")
        side.cold()
        take("find_cold", lambda: quiet("find", tree, "-type", "f"))
        quiet("find", tree, "-size", "+64k")
        take("find_names", lambda: quiet("find", tree, "-type", "f"))
        take("find_sizes", lambda: quiet("find", tree, "-size", "+64k"))
