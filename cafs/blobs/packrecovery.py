"""What a directory of packs is brought to when a store is opened.

Owns the void rule: what lies beyond the committed length of a pack, and every pack that the
index does not know, is void, and its space is taken back here.  But where a pack is missing that
the index counts on, the index may be older than the packs, and what it misses may just have moved
to what it does not know: then nothing of this store's is void.  Touches nothing below a committed
length.  Invariant: running it twice is the same as running it once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from cafs.blobs import fileheader
from cafs.blobs.fileheader import HEADER_LENGTH, PACK_MAGIC, FileHeader
from cafs.blobs.packfile import PackFile, Paths
from cafs.blobs.sidecar import read_sidecar
from cafs.durable import Disk
from cafs.errors import CafsError, DamagedError, NotFoundError, from_os_error
from cafs.types import PackNo

_NAME: Final = re.compile(r"([0-9a-f]{8})\.(pack|side)(\.new)?")


class Problem(NamedTuple):
    """Something about a pack that recovery found and did not put right."""

    pack: PackNo
    text: str
    sidecar_only: bool
    """The chunks are all there; only rebuilding the chunk table would miss some."""
    length: int | None = None
    """How many bytes of the pack there are, where some are missing."""
    kept: bool = False
    """Nothing is wrong with it but that the index does not know it, or not all of it; it is kept
    because others are missing."""


class Recovered(NamedTuple):
    """What there is to go on with."""

    open: list[PackFile]
    """Unsealed packs that may take chunks, oldest first."""
    problems: list[Problem]
    last: PackNo
    """The greatest number of a pack that there is or should be."""


def paths_of(directory: str, pack: PackNo) -> Paths:
    """Where the files of *pack* lie in *directory*."""
    stem = os.path.join(directory, f"{pack:08x}")
    return Paths(f"{stem}.pack", f"{stem}.side")


def recover(
    disk: Disk,
    directory: str,
    store_id: bytes,
    packs: Mapping[PackNo, tuple[int, bool]],
    empty: Collection[PackNo] = (),
) -> Recovered:
    """Bring *directory* to what *packs* says: committed length and whether sealed, by number.

    Of those in *empty* nothing is alive: nothing is lost with them.  Raises DiskError and its kin
    when the directory cannot be read or changed.
    """
    lengths, sidecars, unknown = _look(directory, packs)
    suspect = any(
        lengths.get(pack, 0) < committed
        for pack, (committed, _) in packs.items()
        if pack not in empty
    )
    kept = _remove_void(disk, directory, store_id, unknown, suspect)
    unsealed = []
    problems = [
        Problem(pack, f"pack {pack} is not known to the index", sidecar_only=False, kept=True)
        for pack in kept
    ]
    for pack, (committed, sealed) in sorted(packs.items()):
        found = lengths.get(pack)
        if found is None or found < committed:
            what = "is missing" if found is None else f"ends at {found}"
            text = f"pack {pack} {what}, but {committed} bytes of it were committed"
            if pack not in empty:
                problems.append(Problem(pack, text, sidecar_only=False, length=found or 0))
        elif sealed:
            if pack not in sidecars:
                text = f"pack {pack} has no sidecar"
                problems.append(Problem(pack, text, sidecar_only=True))
        else:
            paths = paths_of(directory, pack)
            if found > committed and suspect:
                text = f"pack {pack} has {found} bytes, of which the index knows {committed}"
                problems.append(Problem(pack, text, sidecar_only=False, kept=True))
                continue
            if found > committed:
                truncate(disk, paths.pack, committed)
            header = FileHeader(pack, store_id)
            damage = _header_damage(disk, paths.pack, header)
            if damage:
                problems.append(Problem(pack, damage, sidecar_only=False))
                continue
            side, gap = _take_sidecar(disk, paths.sidecar, sidecars.get(pack, 0), header, committed)
            if gap:
                problems.append(Problem(pack, gap, sidecar_only=True))
            pack_file = PackFile(disk, paths, header, size=committed, side=side)
            pack_file.settle_sidecar()
            unsealed.append(pack_file)
    return Recovered(unsealed, problems, max([*packs, *kept], default=PackNo(0)))


class _Unknown(NamedTuple):
    """A file of a pack that the index does not know, or one that was never finished."""

    pack: PackNo
    path: str
    unfinished: bool


def _look(
    directory: str, packs: Mapping[PackNo, tuple[int, bool]]
) -> tuple[dict[PackNo, int], dict[PackNo, int], list[_Unknown]]:
    """Lengths of the known packs and of their sidecars, and the files of all others."""
    lengths: dict[PackNo, int] = {}
    sidecars: dict[PackNo, int] = {}
    unknown = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name is None:
                    continue  # Not one of ours: left alone.
                pack = PackNo(int(name[1], 16))
                if pack not in packs or name[3]:
                    unknown.append(_Unknown(pack, entry.path, bool(name[3])))
                else:
                    kind = sidecars if name[2] == "side" else lengths
                    kind[pack] = entry.stat().st_size
    except OSError as error:
        raise from_os_error(error, f"list {directory}") from error
    return lengths, sidecars, unknown


def _remove_void(
    disk: Disk, directory: str, store_id: bytes, unknown: list[_Unknown], suspect: bool
) -> list[PackNo]:
    """Remove files of packs that the index does not know; which of these packs are kept.

    With *suspect* all that are this store's are.
    """
    kept = set()
    if suspect:
        for pack in {each.pack for each in unknown}:
            path = paths_of(directory, pack).pack
            try:
                if header_of(disk, path) == FileHeader(pack, store_id):
                    kept.add(pack)
            except (DamagedError, NotFoundError):
                pass
            except CafsError:
                # Nobody knows what it is.
                kept.add(pack)
    for each in unknown:
        if each.unfinished or each.pack not in kept:
            disk.unlink(each.path)
    return sorted(kept)


def truncate(disk: Disk, path: str, length: int) -> None:
    """Cut a file.  Need not be synced: after a power loss it is cut again."""
    fd = disk.open(path, os.O_WRONLY)
    try:
        disk.truncate(fd, length)
    finally:
        disk.close(fd)


def header_of(disk: Disk, path: str) -> FileHeader:
    """The header of a pack file.  Raises DamagedError if it is none, NotFoundError, DiskError."""
    fd = disk.open(path, os.O_RDONLY)
    try:
        return fileheader.decode(PACK_MAGIC, disk.pread_exact(fd, HEADER_LENGTH, 0), path)
    finally:
        disk.close(fd)


def _header_damage(disk: Disk, path: str, expected: FileHeader) -> str:
    """Why this pack must not be appended to; empty if it may be."""
    try:
        found = header_of(disk, path)
    except DamagedError as error:
        return str(error)
    return "" if found == expected else f"{path} is the pack {found.pack} of another store"


def _take_sidecar(
    disk: Disk, path: str, found: int, header: FileHeader, committed: int
) -> tuple[bytes, str]:
    """Cut a sidecar of *found* bytes to the records below *committed*: its bytes, what it lacks."""
    gap = ""
    covered = keep = HEADER_LENGTH
    try:
        side = read_sidecar(path)
        if side.header != header:
            raise DamagedError(f"{path} is the sidecar of another pack")
        for record in side:
            if record.end > committed:
                break
            if record.offset != covered:
                gap = f"{path} lacks the chunks between {covered} and {record.offset}"
            covered = record.end
            keep = side.good_length
        if covered < committed:
            gap = f"{path} lacks the chunks between {covered} and {committed}"
        if found > keep:
            truncate(disk, path, keep)
        fd = disk.open(path, os.O_RDONLY)
        try:
            return disk.pread_exact(fd, keep, 0), gap
        finally:
            disk.close(fd)
    except (NotFoundError, DamagedError) as error:
        # Written anew from here on, without the chunks that are there already.
        return b"", str(error) if committed > HEADER_LENGTH else ""
