"""Comparing the chunk table with the packs: where chunks lie, and which have lost their records.

A chunk must lie where a sidecar says; one that does not is looked for in all packs.  A chunk
that has lost its record still has its row in ``chunk_sha256``, and the sidecars know the rest.
Invariant: a place counts only when the chunk was read there and found whole.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cafs.blobs import sidecar
from cafs.errors import CafsError
from cafs.index import layout
from cafs.index.layout import ChunkRecord, PackRecord
from cafs.operate.tally import Tally
from cafs.types import ChunkNo, Extent, PackNo
from cafs.view import View

_NEW_PACK: Final = PackRecord(0, 0, 0, 0, 0)
_Places = dict[bytes, list[Extent]]
"""Where the sidecars have chunks, by their SHA-256."""


class Relinked(NamedTuple):
    """How many chunks were found in another place, are in no pack, and have a record again."""

    moved: int
    lost: int
    remade: int


class Relink:
    """One comparison over one view; what is to be changed gathers in the view's overlay."""

    def __init__(self, store: Path, view: View) -> None:
        self._store = store
        self._view = view
        self._sizes: dict[PackNo, PackRecord] = dict(view.pack_table.items())

    def run(self) -> Relinked:
        """Compare."""
        self._extend_packs()
        astray = self._astray()
        recordless = self._recordless()
        places = self._find(set(astray.values()), recordless)
        moved = lost = 0
        for number, sha256 in astray.items():
            record = self._view.chunks.get(ChunkNo(number))
            extent = next((e for e in places[sha256] if self._is_good(number, sha256, e)), None)
            if extent is not None:
                moved += extent[:2] != record.extent[:2]
                self._extend_pack(extent)
            elif self._is_good(number, sha256, record.extent):
                extent = record.extent.as_sound()
            else:
                lost += 1
                extent = record.extent.as_damaged()
            if extent != record.extent:
                self._put(number, record._replace(extent=extent))
        return Relinked(moved, lost, self._remake(recordless, places))

    def _put(self, number: int, record: ChunkRecord) -> None:
        self._view.overlay.put(layout.CHUNKS, layout.u48(number), layout.pack_chunk(record))

    def _remake(self, recordless: dict[bytes, list[int]], places: _Places) -> int:
        """Give chunks their records back; the references are counted later."""
        by_prefix: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for sha256 in places:
            by_prefix[sha256[: layout.DIGEST_PREFIX]].append(sha256)
        remade = 0
        for prefix, numbers in recordless.items():
            digests = by_prefix.get(prefix, ())
            if len(numbers) > 1 or len(digests) != 1:
                # Lost, or which is which is not known.
                continue
            [number], [sha256] = numbers, digests
            extent = next((e for e in places[sha256] if self._is_good(number, sha256, e)), None)
            if extent is not None:
                self._extend_pack(extent)
                self._put(number, ChunkRecord(sha256, extent, 0))
                remade += 1
        return remade

    def _recordless(self) -> dict[bytes, list[int]]:
        """Chunks that only their rows in the digest table tell of: prefix and numbers."""
        known = Tally()
        for key, _ in self._view.overlay.scan(layout.CHUNKS, b"", b""):
            known.append(layout.from_u48(key))
        found: dict[bytes, list[int]] = {}
        for key, _ in self._view.overlay.scan(layout.CHUNK_SHA256, b"", b""):
            number = layout.digest_number(key)
            if known.rank(number) < 0:
                found.setdefault(key[: layout.DIGEST_PREFIX], []).append(number)
        return found

    def _extend_packs(self) -> None:
        """Let the packs' records reach as far as what lies in them: they may be lost, or older."""
        for _, value in self._view.overlay.scan(layout.CHUNKS, b"", b""):
            self._extend_pack(layout.unpack_chunk(value).extent)

    def _extend_pack(self, extent: Extent) -> None:
        known = self._sizes.get(extent.pack)
        end = extent.offset + extent.stored_length
        if known is not None and end <= known.size:
            return
        size = self._size_of(extent.pack)
        if end > size:
            return
        # Written since that commit: all of the file counts now.
        known = (known or _NEW_PACK)._replace(size=size, flags=layout.PACK_SEALED)
        self._sizes[extent.pack] = known
        key = layout.pack_key(extent.pack)
        self._view.overlay.put(layout.PACKS, key, layout.pack_pack(known))

    def _astray(self) -> dict[int, bytes]:
        """Chunks that do not lie where a sidecar has them: number and SHA-256."""
        by_pack: dict[PackNo, array[int]] = {}
        for key, value in self._view.overlay.scan(layout.CHUNKS, b"", b""):
            pack = layout.unpack_chunk(value).extent.pack
            by_pack.setdefault(pack, array("Q")).append(layout.from_u48(key))
        astray: dict[int, bytes] = {}
        for pack, numbers in by_pack.items():
            size = self._size_of(pack)
            # What a sidecar says of a pack that has not got it does not count.
            have = {each.offset: each.sha256 for each in self._records(pack) if each.end <= size}
            for number in numbers:
                record = self._view.chunks.get(ChunkNo(number))
                if have.get(record.extent.offset) != record.sha256 or record.extent.damaged:
                    astray[number] = record.sha256
        return astray

    def _size_of(self, pack: PackNo) -> int:
        """Bytes of a pack's file; 0 when it is gone with all that was in it."""
        try:
            return os.stat(self._view.packs.pack_path(pack)).st_size
        except OSError:
            return 0

    def _records(self, pack: PackNo) -> Iterator[sidecar.SidecarRecord]:
        try:
            yield from sidecar.read_sidecar(self._view.packs.sidecar_path(pack))
        except CafsError:
            # Missing or damaged: its chunks are looked at one by one, by reading them.
            return

    def _find(self, wanted: Collection[bytes], prefixes: Collection[bytes]) -> _Places:
        """Where the sidecars of all packs that are there have chunks with these digests, or
        with digests that begin so."""
        places: defaultdict[bytes, list[Extent]] = defaultdict(list)
        if not wanted and not prefixes:
            return places
        for path in sorted((self._store / "packs").glob("????????.pack")):
            try:
                pack = PackNo(int(path.stem, 16))
                self._view.packs.check_header(pack)
            except (CafsError, ValueError):
                # Not a pack of this store.
                continue
            for record in self._records(pack):
                sha256 = record.sha256
                if sha256 in wanted or sha256[: layout.DIGEST_PREFIX] in prefixes:
                    places[sha256].append(
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

    def _is_good(self, number: int, sha256: bytes, extent: Extent) -> bool:
        """Whether the chunk can be read there."""
        try:
            data = self._view.read_chunk(ChunkNo(number), extent.as_sound())
        except CafsError:
            return False
        return hashlib.sha256(data).digest() == sha256
