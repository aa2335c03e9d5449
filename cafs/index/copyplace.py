"""Where the last hot copy of the index lies, how old it is, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cafs.errors import CafsError
from cafs.index import pages

DIRECTORY: Final = "index-copy"
ADVICE: Final = (
    "the next hot copy takes its place; to have one soon: remove STORE/index-copy, unmount, mount"
)


def made_ns(store: Path) -> int | None:
    """When the copy was made, in nanoseconds since 1970; None when there is none."""
    try:
        return (store / DIRECTORY / pages.FILE).stat().st_mtime_ns
    except OSError:
        return None


def faults(store: Path) -> list[str]:
    """What is wrong with the copy, if there is one.

    Takes as long as for the index itself.  May run while another copy takes its place.
    """
    while True:
        made = made_ns(store)
        if made is None:
            return []
        try:
            found = [str(fault) for fault in pages.audit(store / DIRECTORY, lock=False).faults]
        except CafsError as error:
            found = [str(error)]
        # The file that was begun with need not be the one that was gone on with.
        if not found or made_ns(store) == made:
            return found


def age_s(store: Path, now_ns: int) -> float | None:
    """How old the copy is; None when there is none."""
    made = made_ns(store)
    return None if made is None else max(0.0, round((now_ns - made) / 1e9, 3))
