"""Write the next release of an app over the one before it, in place, with a final sync."""

from __future__ import annotations

from bench.corpus import APPS
from bench.sides import Side
from bench.work.base import Measure, Take, Workload, copy, read_all


class Rewrite(Workload):
    """Most files are the same again, so a deduplicating store need not write them."""

    name = "rewrite"
    measures = (Measure("rewrite", "copy the next release over the last", "s"),)

    def run(self, side: Side, repetition: int, take: Take) -> None:
        app = self.context.pick(APPS[1], APPS[0])
        # The first releases come round again when there are more repetitions than pairs.
        at = repetition % (len(app.versions) - 1)
        before, after = (
            self.context.corpus / "releases" / app.name / version
            for version in app.versions[at : at + 2]
        )
        side.fresh()
        place = side.root / "app"
        copy(before, place)
        side.settle()
        read_all(after)

        def rewrite() -> None:
            copy(after, place)
            side.settle()

        take("rewrite", rewrite)
