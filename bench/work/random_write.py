"""Write 4 KiB at random places of a large file that is there, with fsync at the end."""

from __future__ import annotations

from bench.sides import Side
from bench.work.base import Measure, Take, Workload
from bench.work.data import write_source


class RandomWrite(Workload):
    """The way of writing that a content-addressed store likes least."""

    name = "random_write"
    measures = (Measure("random_write", "write 4 KiB at random places, fsync", "1/s"),)

    def setup(self, side: Side) -> None:
        source = write_source(self.context, "random", self.context.pick(32, 256) << 20, 0)
        self.context.client("write", side.root / "large", source, 128 * 1024)
        source.unlink()
        side.settle()

    def run(self, side: Side, repetition: int, take: Take) -> None:
        count = self.context.pick(200, 5000)
        seed = self.context.seed * 1000 + repetition
        take(
            "random_write",
            lambda: self.context.client("random", side.root / "large", count, seed),
        )
