"""Read one large directory, names only."""

from __future__ import annotations

from bench.sides import Side
from bench.work.base import Measure, Take, Workload


class Listing(Workload):
    """Names a second; warm is the mean of several readings."""

    name = "listing"
    floor = True
    measures = (
        Measure("list_cold", "list a large directory, cold", "1/s"),
        Measure("list_warm", "list a large directory, again", "1/s"),
    )

    def setup(self, side: Side) -> None:
        large = side.root / "large"
        large.mkdir()
        self.context.client("create", large, self.context.pick(2000, 20_000), 0, self.context.seed)
        side.settle()

    def run(self, side: Side, repetition: int, take: Take) -> None:
        large = side.root / "large"
        side.cold()
        take("list_cold", lambda: self.context.client("list", large, 1))
        take("list_warm", lambda: self.context.client("list", large, 20))
