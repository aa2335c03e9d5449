"""Create files of 4 KiB (open, write, close) in one thread, then unlink them."""

from __future__ import annotations

from bench.sides import Side
from bench.work.base import Measure, Take, Target, Workload


class Create(Workload):
    """Each file's content is new; the sync between creating and unlinking is not measured."""

    name = "create"
    floor = True
    measures = (
        Measure("create", "create, write 4 KiB, close", "1/s", Target("value", "at least", 1500)),
        Measure("unlink", "unlink", "1/s"),
    )

    def run(self, side: Side, repetition: int, take: Take) -> None:
        context = self.context
        count = context.pick(3000, 20_000)
        directory = side.root / f"create-{repetition}"
        directory.mkdir()
        seed = context.seed * 1000 + repetition
        take("create", lambda: context.client("create", directory, count, 4096, seed))
        side.settle()
        take("unlink", lambda: context.client("unlink", directory, count))
        directory.rmdir()
