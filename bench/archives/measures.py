"""What is measured of archives that are taken apart, and what is to be reached.

Sides: ``ext4`` and ``cafs`` where bytes or reads are compared; ``quiet`` and ``ageing`` where it
is the same request without and with archives being taken apart meanwhile.
"""

from __future__ import annotations

from bench.work.base import Measure, Target

BYTES = {
    "droplets": "droplets",
    "buildpack caches": "droplets and buildpack caches",
    "packages": "these and packages",
    "resources": "the whole corpus",
}
"""Type that is added to the store -> what is in it then."""
ENGINES = {
    "gnu-gzip": "of gzip files of 64 KiB and more, made again by GNU gzip",
    "zlib": "of deflated members of packages, made again by zlib",
    "nested": "of streams in zips and gzip files inside droplets and caches, made again",
}
WAYS = {"http": "over HTTP", "mount": "through the mount"}
HEADS, GETS = "head", "get"
_LIMITS = {"buildpack caches": 0.25, "resources": 0.30}
_FIRST_BYTE_S = 1.0


def _bytes() -> list[Measure]:
    found = []
    for kind, title in BYTES.items():
        limit = _LIMITS.get(kind)
        target = Target("ratio", "at most", limit) if limit else None
        found.append(Measure(f"plain_{kind}", f"stored bytes before ageing: {title}", "B"))
        found.append(Measure(f"aged_{kind}", f"stored bytes, aged: {title}", "B", target))
    return found


def _reads() -> list[Measure]:
    found = []
    for way, words in WAYS.items():
        for state, said in (("cold", "nothing cached"), ("warm", "again")):
            target = Target("value", "at most", _FIRST_BYTE_S)
            title = f"aged droplet {words}, {said}"
            found.append(Measure(f"first_{way}_{state}", f"first byte: {title}", "s", target))
            found.append(Measure(f"whole_{way}_{state}", f"all of it: {title}", "s"))
    return found


def _latency() -> list[Measure]:
    limit = Target("ratio", "at most", 1.5)
    return [
        Measure(f"{HEADS}.p50", "HEAD, median", "us"),
        Measure(f"{HEADS}.p99", "HEAD, 99th percentile", "us", limit),
        Measure(f"{GETS}.p50", "GET of 64 KiB, median", "us"),
        Measure(f"{GETS}.p99", "GET of 64 KiB, 99th percentile", "us"),
    ]


def _all() -> list[Measure]:
    return [
        *_bytes(),
        *(Measure(f"share_{engine}", f"share {words}", "share")
          for engine, words in ENGINES.items()),
        Measure("apart", "taking apart, a core: bytes of archives", "MB/s"),
        Measure("apart_inflated", "taking apart, a core: bytes inside them", "MB/s"),
        Measure("rebuild", "rebuilding, a core: bytes of archives", "MB/s"),
        Measure("rebuild_inflated", "rebuilding, a core: bytes inside them", "MB/s"),
        *_reads(),
        *_latency(),
    ]  # fmt: skip


MEASURES: dict[str, Measure] = {measure.key: measure for measure in _all()}
"""All measures by their keys, in the order in which they are shown."""
