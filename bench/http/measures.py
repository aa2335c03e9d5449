"""What is measured over HTTP, and what cafs is to reach beside nginx on ext4.

Invariant: a measure of speed has three companions made from the same requests (median and 99th
percentile of a request, processor time of the server for each), so that none is quoted alone.
"""

from __future__ import annotations

from bench.work.base import Measure, Target, Unit


def _least(limit: float) -> Target:
    return Target("ratio", "at least", limit)


def _rate(key: str, title: str, target: Target | None = None, unit: Unit = "1/s") -> list[Measure]:
    return [
        Measure(key, title, unit, target),
        Measure(f"{key}.p50", f"{title}: median", "us"),
        Measure(f"{key}.p99", f"{title}: 99th percentile", "us"),
        Measure(f"{key}.cpu", f"{title}: processor time of the server a request", "us"),
    ]


def _all() -> list[Measure]:
    found: list[Measure] = []
    for what, asked in (("hit", "existing"), ("miss", "missing")):
        head = f"HEAD, {asked}"
        found += _rate(f"head_{what}_cold", f"{head}, first ones after a cold start", _least(3))
        found += _rate(f"head_{what}", f"{head}, warm, 1 connection, TLS", _least(1))
        found += _rate(f"head_{what}_clear", f"{head}, warm, 1 connection, clear", _least(1))
        found += _rate(f"head_{what}_16", f"{head}, warm, 16 connections, TLS", _least(1))
        found += _rate(f"head_{what}_fresh", f"{head}, warm, a TLS connection each", _least(1))
    found += [
        Measure("warm_up", "from a cold start until HEAD is at 80 % of its warm speed", "s",
                Target("value", "at most", 3)),
        Measure("memory", "memory for each blob, all of them warm", "B/blob",
                Target("value", "at most", 300)),
        Measure("push", "a push of 5,000 files, half of them known, HEAD one by one", "s",
                _least(1)),
        Measure("bulk", "existence of 5,000 in one question / ext4: HEAD one by one, kept alive",
                "s", _least(5)),
        Measure("bulk_fresh", "the same / ext4: HEAD with a TLS connection each", "s", _least(100)),
        Measure("bulk_time", "existence of 5,000 in one question", "s",
                Target("value", "at most", 0.025)),
    ]  # fmt: skip
    for size in ("64 KB", "1 MB", "100 MB"):
        key = size.replace(" ", "").lower()
        for tls, words in ((True, "TLS"), (False, "clear")):
            for count in (1, 16):
                title = f"GET {size}, warm, {words}, {count} at a time"
                target = _least(0.95 if tls else 0.7)
                found += _rate(f"get_{key}_{words.lower()}_{count}", title, target, "MB/s")
        found += _rate(f"get_{key}_cold", f"GET {size}, cold, TLS", _least(1), "MB/s")
    for size in ("64 KB", "1 MB", "100 MB"):
        key = size.replace(" ", "").lower()
        new = None if size == "64 KB" else _least(0.5)
        found += _rate(f"put_{key}_new", f"PUT {size}, new content", new, "MB/s")
        found += _rate(f"put_{key}_known", f"PUT {size}, known content", _least(0.8), "MB/s")
    found += [
        Measure("copy_1mb", "COPY of 1 MB", "s"),
        Measure("copy_100mb", "COPY of 100 MB", "s"),
        Measure("delete_tree", "DELETE of a tree", "s"),
        Measure("propfind", "PROPFIND of a large directory", "s"),
    ]
    return found


MEASURES: dict[str, Measure] = {measure.key: measure for measure in _all()}
"""All measures by their keys, in the order in which they are shown."""
