"""Bringing an index back: from what is whole of it, its last copy, and the packs.

Three steps, each of which is left out where there is nothing to do:

1. The index is made anew from its pages that are whole; what lay in damaged ones is taken from
   the copy, and so is everything when there is nothing left to read.
2. Each chunk must lie where the sidecars say; one that moved since the copy is found there.
3. A repair counts everything anew.

The damaged index is kept beside the new one.  Invariant: ``STORE/index`` is replaced by one
rename, when the new one is whole and durable.
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import lmdb

from cafs import storefile
from cafs._index import unseal
from cafs.blobs import sidecar
from cafs.durable import Disk
from cafs.errors import CafsError, IndexDamagedError, from_os_error
from cafs.index import layout, meta, pages
from cafs.index.copyplace import DIRECTORY
from cafs.index.layout import PackRecord
from cafs.index.pages import Fault
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.operate.repair import Repaired, repair
from cafs.types import ChunkNo, Extent, PackNo
from cafs.view import View

OnPhase = Callable[[str], None]
_NEW = "index.new"
_BATCH = 100_000
_NEW_PACK = PackRecord(0, 0, 0, 0, 0)


class Rebuilt(NamedTuple):
    """What was done."""

    source: str
    """``index``: it was whole; ``both``: parts came from the copy; ``copy``: all did."""
    faults: list[str]
    """What was wrong with the index."""
    from_copy: int
    """Records that came from the copy."""
    kept_as: str
    """The damaged index's new name in the store; empty if it was whole."""
    moved_chunks: int
    """Chunks that were found in another place than the index said."""
    lost_chunks: int
    """Chunks that are in no pack."""
    repaired: Repaired


def rebuild(store: Path, on_phase: OnPhase) -> Rebuilt:
    """Bring the index of *store* back.

    Raises StoreBusyError, IndexDamagedError when there is neither an index nor a copy,
    DiskFullError and its kin; then the store is as it was.
    """
    storefile.read(store)
    lock = StoreLock(store)
    try:
        on_phase("looking at the index")
        source, faults, from_copy, kept = "index", [], 0, ""
        mended = meta.mend(store / "index", lose_commit=True)
        if mended is not None:
            faults = [str(mended)]
        try:
            found = pages.audit(store / "index").faults
            faults += [str(fault) for fault in found]
            if found:
                on_phase("making the index anew")
                source = "both"
                from_copy = _make_anew(store, store / "index", found)
        except IndexDamagedError as error:
            on_phase("taking the copy of the index")
            source, faults = "copy", [*faults, str(error)]
            _take_copy(store)
        if source != "index":
            kept = _put_in_place(store)
        on_phase("comparing chunks with the packs")
        moved, lost = _relink(store, lock)
    finally:
        lock.release()
    on_phase("counting everything anew")
    return Rebuilt(source, faults, from_copy, kept, moved, lost, repair(store))


# -- 1: the index ----------------------------------------------------------------------------


def _fresh(store: Path) -> Path:
    new = store / _NEW
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    return new


def _copy_of(store: Path) -> tuple[Path, list[Fault]] | None:
    """Where the copy is, if it can be trusted but for these records."""
    place = store / DIRECTORY
    try:
        faults = pages.audit(place, lock=False).faults
    except CafsError:
        return None
    return (place, faults) if all(fault.one_record for fault in faults) else None


def _take_copy(store: Path) -> None:
    copy = _copy_of(store)
    if copy is None:
        raise IndexDamagedError(
            f"{store}: the index cannot be read, and there is no copy of it that is whole",
            advice="restore the store from a backup; the packs alone have content, but no names",
        )
    place, faults = copy
    if faults:
        _make_anew(store, place, [])
        return
    new = _fresh(store)
    try:
        shutil.copyfile(place / pages.FILE, new / pages.FILE)
        _sync(new / pages.FILE, 0o600)
    except OSError as error:
        raise from_os_error(error, f"copy the index to {new}") from error


def _make_anew(store: Path, source: Path, faults: Sequence[Fault]) -> int:
    """The new index of what is whole in *source*, with what *faults* lost of it from the copy;
    how many records came from there."""
    new = _fresh(store)
    numbers = {name.decode(): number for number, name in enumerate(layout.DATABASES)}
    environment = lmdb.open(
        str(new), map_size=1 << 40, max_dbs=len(numbers) + 1, sync=False, metasync=False
    )
    try:
        databases = [environment.open_db(name) for name in layout.DATABASES]
        batch: list[tuple[int, bytes, bytes]] = []

        def write() -> None:
            with environment.begin(write=True) as txn:
                for number, key, value in batch:
                    # With its check, as it lay there.
                    txn.put(key, value, db=databases[number])
            batch.clear()

        def keep(name: str, key: bytes, value: bytes) -> None:
            if name in numbers:
                batch.append((numbers[name], key, value))
                if len(batch) >= _BATCH:
                    write()

        # Read once more, this time keeping what is there.
        pages.audit(source, keep=keep, lock=source.name != DIRECTORY)
        from_copy = 0
        for name, key, value in _lost_ranges(store, faults, numbers):
            keep(name, key, value)
            from_copy += 1
        write()
        environment.sync(True)
    except lmdb.Error as error:
        raise IndexDamagedError(f"make {new}: {error}") from error
    finally:
        environment.close()
    _sync(new / pages.FILE, 0o600)
    return from_copy


def _lost_ranges(
    store: Path, faults: Sequence[Fault], numbers: dict[str, int]
) -> Iterator[tuple[str, bytes, bytes]]:
    """What the copy has of the ranges of keys that were in damaged pages."""
    copy = _copy_of(store)
    if copy is None or not faults:
        return
    # A damaged page of LMDB's own list of databases may have taken any of them.
    lost: list[tuple[str, bytes, bytes | None]] = []
    for fault in faults:
        if fault.database in numbers and fault.page:
            lost.append((fault.database, fault.low, fault.high))
        elif fault.database == "main":
            lost += [(name, b"", None) for name in numbers]
    environment = lmdb.open(
        str(copy[0]), map_size=1 << 40, max_dbs=len(numbers) + 1, readonly=True, lock=False
    )
    try:
        databases = {name: environment.open_db(name.encode(), create=False) for name in numbers}
        with environment.begin() as txn:
            for name, low, high in lost:
                with txn.cursor(databases[name]) as cursor:
                    if not (cursor.set_range(low) if low else cursor.first()):
                        continue
                    for key, value in cursor.iternext():
                        if high is not None and key >= high:
                            break
                        if unseal(numbers[name], key, value) is not None:
                            yield name, key, value
    finally:
        environment.close()


def _put_in_place(store: Path) -> str:
    """The new index takes the old one's place, which is kept under another name."""
    number = 1
    while (store / f"index.damaged-{number}").exists():
        number += 1
    kept = ""
    disk = Disk()
    if (store / "index" / pages.FILE).exists():
        kept = f"index.damaged-{number}"
        disk.rename(store / "index", store / kept)
    else:
        shutil.rmtree(store / "index", ignore_errors=True)
    disk.rename(store / _NEW, store / "index")
    disk.sync_directory(store)
    return kept


def _sync(path: Path, mode: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)
    Disk().sync_directory(path.parent)


# -- 2: the chunk table ----------------------------------------------------------------------


def _relink(store: Path, lock: StoreLock) -> tuple[int, int]:
    """Point chunks at where the sidecars have them; how many moved, and how many are lost."""
    with View(store) as view:
        sizes = {number: record for number, record in view.pack_table.items()}
        _extend_packs(view, sizes)
        astray = _astray(view)
        places = _find(store, view, set(astray.values()))
        moved = lost = 0
        for number, sha256 in astray.items():
            key = layout.u48(number)
            record = view.chunks.get(ChunkNo(number))
            extent = next((e for e in places[sha256] if _is_good(view, number, e)), None)
            if extent is None:
                if not _is_good(view, number, record.extent):
                    lost += 1
                    extent = record.extent.as_damaged()
                else:
                    extent = record.extent.as_sound()
            else:
                moved += 1
                _extend_pack(view, sizes, extent)
            if extent != record.extent:
                packed = layout.pack_chunk(record._replace(extent=extent))
                view.overlay.put(layout.CHUNKS, key, packed)
        if view.overlay.dirty:
            writer = IndexWriter(store / "index", lock.fd)
            try:
                writer.write(view.overlay.freeze())
            finally:
                writer.close()
        return moved, lost


def _extend_packs(view: View, sizes: dict[PackNo, PackRecord]) -> None:
    """Let the packs' records reach as far as what lies in them: they may be lost, or older."""
    for _, value in view.overlay.scan(layout.CHUNKS, b"", b""):
        extent = layout.unpack_chunk(value).extent
        known = sizes.get(extent.pack)
        if known is None or extent.offset + extent.stored_length > known.size:
            _extend_pack(view, sizes, extent)


def _extend_pack(view: View, sizes: dict[PackNo, PackRecord], extent: Extent) -> None:
    known = sizes.get(extent.pack)
    if known is not None and extent.offset + extent.stored_length <= known.size:
        return
    try:
        size = os.stat(view.packs.pack_path(extent.pack)).st_size
    except OSError:
        # Gone with all that was in it.
        return
    if extent.offset + extent.stored_length > size:
        return
    # Written since that commit: all of the file counts now.
    known = (known or _NEW_PACK)._replace(size=size, flags=layout.PACK_SEALED)
    sizes[extent.pack] = known
    view.overlay.put(layout.PACKS, layout.pack_key(extent.pack), layout.pack_pack(known))


def _astray(view: View) -> dict[int, bytes]:
    """Chunks that do not lie where a sidecar has them: number and SHA-256."""
    by_pack: dict[PackNo, array[int]] = {}
    for key, value in view.overlay.scan(layout.CHUNKS, b"", b""):
        pack = layout.unpack_chunk(value).extent.pack
        by_pack.setdefault(pack, array("Q")).append(layout.from_u48(key))
    astray: dict[int, bytes] = {}
    for pack, numbers in by_pack.items():
        have = {record.offset: record.sha256 for record in _records(view, pack)}
        for number in numbers:
            record = view.chunks.get(ChunkNo(number))
            if have.get(record.extent.offset) != record.sha256 or record.extent.damaged:
                astray[number] = record.sha256
    return astray


def _records(view: View, pack: PackNo) -> Iterator[sidecar.SidecarRecord]:
    try:
        yield from sidecar.read_sidecar(view.packs.sidecar_path(pack))
    except CafsError:
        # Missing or damaged: its chunks are looked at one by one, by reading them.
        return


def _find(store: Path, view: View, wanted: set[bytes]) -> dict[bytes, list[Extent]]:
    """Where the sidecars of all packs that are there have these chunks."""
    places: defaultdict[bytes, list[Extent]] = defaultdict(list)
    if not wanted:
        return places
    for path in sorted((store / "packs").glob("????????.pack")):
        try:
            pack = PackNo(int(path.stem, 16))
            view.packs.check_header(pack)
        except (CafsError, ValueError):
            # Not a pack of this store.
            continue
        for record in _records(view, pack):
            if record.sha256 in wanted:
                places[record.sha256].append(
                    Extent(
                        pack,
                        record.offset,
                        record.stored_length,
                        record.codec,
                        record.raw_length,
                        record.xxh3,
                    )
                )
    return places


def _is_good(view: View, number: int, extent: Extent) -> bool:
    """Whether the chunk can be read there."""
    try:
        view.read_chunk(ChunkNo(number), extent.as_sound())
    except CafsError:
        return False
    return True
