"""Write a large new file from start to end, with fsync."""

from __future__ import annotations

from functools import partial

from bench.sides import Side
from bench.work.base import Measure, Take, Target, Workload
from bench.work.data import KINDS, write_source

_BLOCK = 128 * 1024


class SequentialWrite(Workload):
    """Each repetition's bytes are new to the store; all sides write the same."""

    name = "seq_write"
    floor = True
    measures = tuple(
        Measure(
            f"write_{kind}",
            f"write new {kind} data, fsync",
            "MB/s",
            Target("ratio", "at least", 0.3),
        )
        for kind in KINDS
    )

    def run(self, side: Side, repetition: int, take: Take) -> None:
        context = self.context
        for kind in KINDS:
            source = write_source(context, kind, context.pick(64, 512) << 20, repetition)
            target = side.root / source.name
            take(f"write_{kind}", partial(context.client, "write", target, source, _BLOCK))
            target.unlink()
            source.unlink()
        side.settle()
