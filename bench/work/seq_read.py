"""Read a large file from start to end: with nothing cached, then again."""

from __future__ import annotations

from functools import partial

from bench.sides import Side
from bench.work.base import Measure, Take, Target, Workload
from bench.work.data import KINDS, write_source

_BLOCK = 128 * 1024


class SequentialRead(Workload):
    """The second reading comes from the page cache."""

    name = "seq_read"
    floor = True
    measures = tuple(
        Measure(f"read_{kind}_{when}", f"read {kind} data, {title}", "MB/s", target)
        for kind in KINDS
        for when, title, target in (
            ("first", "first time", Target("ratio", "at least", 0.6)),
            ("again", "again", Target("ratio", "at least", 0.9)),
        )
    )

    def setup(self, side: Side) -> None:
        for kind in KINDS:
            source = write_source(self.context, kind, self.context.pick(64, 512) << 20, 0)
            self.context.client("write", side.root / kind, source, _BLOCK)
            source.unlink()
        side.settle()

    def run(self, side: Side, repetition: int, take: Take) -> None:
        for kind in KINDS:
            side.cold()
            for when in ("first", "again"):
                path = side.root / kind
                take(f"read_{kind}_{when}", partial(self.context.client, "read", path, _BLOCK))
