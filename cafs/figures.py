"""The counters of a store as operators see them, with a daemon or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cafs import storefile
from cafs.clock import SystemClock
from cafs.index import copyplace, layout
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.counters import Counters
from cafs.index.env import Environment
from cafs.index.overlay import Overlay


def figures(counters: Counters) -> dict[str, Any]:
    """The counters of a store as status shows them."""
    stored = counters.stored_bytes
    return {
        "generation": counters.generation,
        "inodes_count": counters.inodes,
        "files_count": counters.files,
        "blobs_count": counters.blobs,
        "chunks_count": counters.chunks,
        "logical_bytes": counters.logical_bytes,
        "blob_bytes": counters.blob_bytes,
        "unique_bytes": counters.raw_bytes,
        "stored_bytes": stored,
        "ratio": round(counters.logical_bytes / stored, 3) if stored else None,
    }


def offline_status(path: Path) -> dict[str, Any]:
    """What status can show without a daemon.  Raises StoreMissingError and its kin."""
    storefile.read(path)
    environment = Environment(path / "index")
    try:
        overlay = Overlay(environment)
        answer = figures(Counters.decode(overlay.get(layout.META, COUNTERS_KEY)))
        overlay.close()
        answer["index_file_bytes"] = environment.file_bytes()
        answer["index_copy_age_s"] = copyplace.age_s(path, SystemClock().now_ns())
        return answer
    finally:
        environment.close()
