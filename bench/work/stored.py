"""How many bytes the disk gives for real input, everything that the store needs included."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.corpus import APPS, App
from bench.meter import footprint
from bench.sides import Side
from bench.work.base import Measure, Take, Target, Workload, copy

_PARTS = {
    "releases": ("ten releases of each app, unpacked", Target("ratio", "at most", 0.15)),
    "zips": ("their zips", Target("ratio", "at most", 0.45)),
    "droplets": ("their tgz droplets", None),
    "resources": ("resource cache of their files >= 64 KiB", Target("ratio", "at most", 0.6)),
}
_INDEX_SHARE = 0.002
_INDEX_PER_FILE = 400


class Stored(Workload):
    """Each part goes into a store of its own, which is closed before it is counted."""

    name = "stored"
    repeats = False
    measures = (
        *(
            Measure(f"stored_{part}", f"stored bytes: {t}", "B", g)
            for part, (t, g) in _PARTS.items()
        ),
        *(
            Measure(f"stored_{app.name}", f"stored bytes: {app.name}, unpacked", "B")
            for app in APPS
        ),
        Measure("index_bytes", "index of the unpacked releases", "B"),
        Measure(
            "index_share",
            "index / (0.2 % of its logical bytes + 400 B a file)",
            "share",
            Target("value", "at most", 1.0),
        ),
        Measure("empty_store", "a store with nothing in it", "B"),
    )

    def run(self, side: Side, repetition: int, take: Take) -> None:
        side.fresh()
        if side.index_bytes() is not None:
            take("empty_store", lambda: float(side.stored().allocated_bytes))
        for part in _PARTS:
            side.fresh()
            source = self.context.corpus / part
            if part == "releases":
                self._releases(side, source, take)
            elif part == "resources":
                copy(source, side.root / part)
            else:
                self._archives(side, source)
            self._take_total(side, part, take)

    @property
    def _apps(self) -> tuple[App, ...]:
        return self.context.pick(APPS[1:2], APPS)

    def _releases(self, side: Side, source: Path, take: Take) -> None:
        before = side.stored().allocated_bytes
        (side.root / "releases").mkdir()
        for app in self._apps:
            copy(source / app.name, side.root / "releases" / app.name)
            side.settle()
            after = side.stored().allocated_bytes
            take(f"stored_{app.name}", partial(float, after - before))
            before = after

    def _archives(self, side: Side, source: Path) -> None:
        (side.root / source.name).mkdir()
        for app in self._apps:
            for archive in sorted(source.glob(f"{app.name}-*")):
                copy(archive, side.root / source.name / archive.name)

    def _take_total(self, side: Side, part: str, take: Take) -> None:
        side.settle()
        logical = footprint(side.root)
        side.stop()
        take(f"stored_{part}", lambda: float(side.stored().allocated_bytes))
        index = side.index_bytes()
        if part == "releases" and index is not None:
            allowed = _INDEX_SHARE * logical.logical_bytes + _INDEX_PER_FILE * logical.files
            take("index_bytes", lambda: float(index))
            take("index_share", lambda: index / allowed)
        side.start()
