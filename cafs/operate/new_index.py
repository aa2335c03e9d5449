"""Making an index anew: of what is whole of a damaged one, and of the last hot copy.

Invariant: ``STORE/index`` is not touched before the new one is whole and durable beside it, and
marked so (see cafs.index.unfinished).  What cannot be written leaves the store as it was.
"""

from __future__ import annotations

import os
import shutil
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import lmdb

from cafs.durable import Disk
from cafs.errors import CafsError, IndexDamagedError, from_os_error
from cafs.index import layout, pages, unfinished, writer
from cafs.index.copyplace import DIRECTORY
from cafs.index.env import MAP_SIZE
from cafs.index.pages import Fault

NEW: Final = "index.new"
DAMAGED: Final = "index.damaged"
_BATCH: Final = 100_000
_NUMBERS: Final = {name.decode(): number for number, name in enumerate(layout.DATABASES)}
_Keep = Callable[[str, bytes, bytes], None]


def has_no_roots(faults: Sequence[Fault]) -> bool:
    """Whether the page is damaged that leads to all databases: nothing is left to be read."""
    return any(fault.database == "main" and fault.page for fault in faults)


def of_copy(store: Path) -> list[Fault]:
    """The new index of what is whole in the copy; what is not.

    Raises IndexDamagedError if there is no copy to begin with, DiskFullError and its kin.
    """
    faults = _faults_of_copy(store)
    if faults is None:
        raise IndexDamagedError(
            f"{store}: the index cannot be read, and there is no copy of it that can",
            advice="restore the store from a backup; the packs alone have content, but no names",
        )
    if faults:
        of_pages(store, store / DIRECTORY, [])
        return faults
    new = _fresh(store)
    try:
        shutil.copyfile(store / DIRECTORY / pages.FILE, new / pages.FILE)
    except OSError as error:
        raise from_os_error(error, f"copy the index to {new}") from error
    _sync(new / pages.FILE)
    return []


def of_pages(store: Path, source: Path, faults: Sequence[Fault]) -> int:
    """The new index of what is whole in *source*, with what *faults* lost of it from the copy;
    how many records came from there.

    Raises DiskFullError and its kin, IndexDamagedError.
    """
    new = _fresh(store)
    batch: list[tuple[int, bytes, bytes]] = []
    environment: lmdb.Environment | None = None
    try:
        environment = lmdb.open(
            str(new), map_size=MAP_SIZE, max_dbs=len(_NUMBERS) + 1, sync=False, metasync=False
        )
        env = environment
        databases = [env.open_db(name) for name in layout.DATABASES]

        def write() -> None:
            with env.begin(write=True) as txn:
                for number, key, value in batch:
                    # With its check, as it lay there.
                    txn.put(key, value, db=databases[number])
            batch.clear()

        def keep(name: str, key: bytes, value: bytes) -> None:
            if name in _NUMBERS:
                batch.append((_NUMBERS[name], key, value))
                if len(batch) >= _BATCH:
                    write()

        # Read once more, this time keeping what is there.
        pages.audit(source, keep=keep, lock=source.name != DIRECTORY)
        from_copy = _lost_ranges(store, faults, keep)
        write()
        env.sync(True)
    except lmdb.Error as error:
        # What is read goes past LMDB: this is the new one's.
        raise writer.fault(error, new, "make the index anew") from error
    finally:
        if environment is not None:
            environment.close()
    _sync(new / pages.FILE)
    return from_copy


def _faults_of_copy(store: Path) -> list[Fault] | None:
    """What is not whole in the copy; None if there is none, or nothing to begin with."""
    try:
        faults = pages.audit(store / DIRECTORY, lock=False).faults
    except CafsError:
        return None
    return None if has_no_roots(faults) else faults


def _lost_ranges(store: Path, faults: Sequence[Fault], keep: _Keep) -> int:
    """Keep what the copy has, whole, of the ranges of keys that were in damaged pages; how many
    records that are."""
    lows: defaultdict[str, list[bytes]] = defaultdict(list)
    highs: defaultdict[str, list[bytes | None]] = defaultdict(list)
    for fault in sorted(faults, key=lambda fault: fault.low):
        if fault.database in _NUMBERS and fault.page:
            lows[fault.database].append(fault.low)
            highs[fault.database].append(fault.high)
    if not lows or _faults_of_copy(store) is None:
        return 0
    count = 0

    def take(name: str, key: bytes, value: bytes) -> None:
        nonlocal count
        place = bisect_right(lows[name], key) - 1 if name in lows else -1
        # Pages do not overlap, but a range that is empty may begin where another one does.
        while place >= 0:
            high = highs[name][place]
            if high is None or key < high:
                keep(name, key, value)
                count += 1
                return
            if lows[name][place] != high:
                return
            place -= 1

    pages.audit(store / DIRECTORY, keep=take, lock=False)
    return count


def _fresh(store: Path) -> Path:
    new = store / NEW
    discard(store)
    try:
        new.mkdir(mode=0o700)
    except OSError as error:
        raise from_os_error(error, f"make {new}") from error
    return new


def discard(store: Path) -> None:
    """Remove what there is of a new index."""
    shutil.rmtree(store / NEW, ignore_errors=True)


def _sync(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(error, f"sync {path}") from error
    Disk().sync_directory(path.parent)


# -- into its place --------------------------------------------------------------------------


def free_name(store: Path) -> str:
    """What the damaged index will be called; empty if there is none."""
    if not (store / "index" / pages.FILE).exists():
        return ""
    number = 1
    while (store / f"{DAMAGED}-{number}").exists():
        number += 1
    return f"{DAMAGED}-{number}"


def put_in_place(store: Path, kept: str) -> None:
    """The new index takes the old one's place, which is kept as *kept*, if it has a name."""
    disk = Disk()
    if kept:
        disk.rename(store / "index", store / kept)
    else:
        shutil.rmtree(store / "index", ignore_errors=True)
    disk.rename(store / NEW, store / "index")
    disk.sync_directory(store)


def go_on(store: Path) -> None:
    """Put a new index in place that was kept from it half-way: the old one has gone already.

    Where there is an index, it may have changed since the new one was made, which then is void.
    """
    if not (store / "index" / pages.FILE).exists() and unfinished.note(store / NEW) is not None:
        put_in_place(store, "")
