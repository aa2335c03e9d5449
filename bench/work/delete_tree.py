"""Delete a real tree with ``rm -rf``."""

from __future__ import annotations

from bench.sides import Side
from bench.work.base import Measure, Take, Workload, copy, remove


class DeleteTree(Workload):
    """The tree was copied in and synced just before."""

    name = "delete_tree"
    floor = True
    measures = (Measure("delete_tree", "delete a tree (rm -rf)", "s"),)

    def run(self, side: Side, repetition: int, take: Take) -> None:
        tree = side.root / "tree"
        copy(self.context.tree, tree)
        side.settle()
        take("delete_tree", lambda: remove(tree))
        side.settle()
