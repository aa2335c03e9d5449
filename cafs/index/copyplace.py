"""Where the last hot copy of the index lies, and how old it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cafs.index import pages

DIRECTORY: Final = "index-copy"


def made_ns(store: Path) -> int | None:
    """When the copy was made, in nanoseconds since 1970; None when there is none."""
    try:
        return (store / DIRECTORY / pages.FILE).stat().st_mtime_ns
    except OSError:
        return None


def age_s(store: Path, now_ns: int) -> float | None:
    """How old the copy is; None when there is none."""
    made = made_ns(store)
    return None if made is None else max(0.0, round((now_ns - made) / 1e9, 3))
