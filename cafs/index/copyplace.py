"""Where the last hot copy of the index lies, how old it is, whether it is whole, and where the
next one is made.

Invariant: one copy is made at a time, whoever makes it: who does holds a flock of the directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cafs.errors import CafsError
from cafs.index import pages

DIRECTORY: Final = "index-copy"
ADVICE: Final = (
    "the next hot copy takes its place; to have one soon: remove STORE/index-copy, unmount, mount"
)
_NEW: Final = "new"


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


@contextmanager
def making(store: Path) -> Iterator[Path]:
    """An empty directory for the next copy, which goes at the end of the block.

    Waits for who is making one now: a child of a daemon that was killed may still do so.  Raises
    OSError.
    """
    place = store / DIRECTORY
    place.mkdir(mode=0o700, exist_ok=True)
    new = place / _NEW
    with _alone(place, fcntl.LOCK_EX):
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(mode=0o700)
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


def clear(store: Path) -> None:
    """Remove what a copy has left that did not come to its end.  Blocks."""
    try:
        with _alone(store / DIRECTORY, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(store / DIRECTORY / _NEW, ignore_errors=True)
    except OSError:
        # There never was a copy; or one is being made, and who does that removes it.
        pass


@contextmanager
def _alone(place: Path, how: int) -> Iterator[None]:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)
