"""docs/http.md is held to the code: its metrics, its URLs, its settings."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from cafs import config
from cafs.http import counting
from cafs.http.app import locations
from cafs.http.site import Site
from cafs.store import Store

TEXT = (Path(__file__).parents[2] / "docs" / "http.md").read_text()

STATUS: dict[str, Any] = {
    "generation": 3,
    "inodes_count": 1,
    "files_count": 1,
    "blobs_count": 1,
    "chunks_count": 1,
    "logical_bytes": 1,
    "blob_bytes": 1,
    "unique_bytes": 1,
    "stored_bytes": 1,
    "index_file_bytes": 1,
    "pending": {"changes_count": 0, "content_bytes": 0, "files_being_written_count": 0},
    "disk": {"free_bytes": 1, "total_bytes": 1},
    "health": {"state": "ok"},
    "archives": {
        "state": "idle",
        "queue_count": 0,
        "taken_apart_count": 0,
        "taken_apart_bytes": 0,
        "gained_bytes": 0,
        "worked_s": 0.0,
        "share_percent": 25,
        "left": {},
        "reads_count": 0,
        "rebuilds_count": 0,
        "rebuilds_failed_count": 0,
        "rebuilt_bytes": 0,
        "thawed_count": 0,
        "cache_bytes": 0,
        "cache_hits_count": 0,
        "engines": [],
    },
}


def families() -> list[tuple[str, str, str]]:
    """Name, type and help of every metric."""
    store = SimpleNamespace(
        committer=SimpleNamespace(thawed=[], last_seconds=0.0),
        status=lambda: STATUS,
        reader=SimpleNamespace(fetched=0),
        damaged_reads=0,
    )
    registry = counting.Requests(cast(Store, store)).registry
    return [
        (
            metric.name + ("_total" if metric.type == "counter" else ""),
            metric.type,
            metric.documentation,
        )
        for metric in registry.collect()
    ]


def _rows(heading: str) -> list[list[str]]:
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_metrics() -> None:
    assert _rows("Metrics") == [[f"`{name}`", kind, text] for name, kind, text in families()]


def test_urls() -> None:
    documented = {
        prefix: set(row[1].split())
        for row in _rows("URLs")
        for prefix in re.findall(r"`(/\w+/?)", row[0])
        if prefix != "/sign_for_put"
    }
    found = {}
    for route in locations(cast(Site, None)):
        location: Any = route.endpoint
        if hasattr(location, "_handlers"):
            found[location._prefix.decode()] = set(location._handlers)
    # HEAD of a link is as good as GET, and not worth a word.
    found["/sign"].discard("HEAD")
    assert documented == found


def test_settings() -> None:
    keys = {row.key for row in config.table()}
    named = set(re.findall(r"`((?:http|serve|mount)\.\w+)", TEXT)) - {"http.sock"}
    assert named and named <= keys
