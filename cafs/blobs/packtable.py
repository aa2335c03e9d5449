"""The index's records of packs: committed length, and how much in them is alive.

Small enough to be kept whole in memory (a pack is hundreds of megabytes); written back with
each commit.  Invariant: live_bytes of a pack is the sum of the stored lengths of the chunk
records that point into it.
"""

from __future__ import annotations

from collections.abc import Iterator

from cafs.blobs.pack import PackStore
from cafs.index import layout
from cafs.index.layout import PackRecord
from cafs.index.overlay import Overlay
from cafs.types import Extent, PackNo

_NEW = PackRecord(0, 0, 0, 0, 0)


class PackTable:
    """All packs that the index knows.  Belongs to the event loop."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._records: dict[PackNo, PackRecord] = {}
        self._changed: set[PackNo] = set()
        for key, value in overlay.scan(layout.PACKS, b"", b""):
            self._records[PackNo(int.from_bytes(key, "big"))] = layout.unpack_pack(value)

    def items(self) -> Iterator[tuple[PackNo, PackRecord]]:
        """Numbers and records, oldest first."""
        yield from sorted(self._records.items())

    def get(self, number: PackNo) -> PackRecord | None:
        """One record, or None."""
        return self._records.get(number)

    def gained(self, extent: Extent) -> None:
        """A chunk record now points at *extent*."""
        record = self._records.get(extent.pack, _NEW)
        self._records[extent.pack] = record._replace(
            live_bytes=record.live_bytes + extent.stored_length,
            live_chunks=record.live_chunks + 1,
            flags=record.flags & ~layout.PACK_EMPTIED,
            emptied_ns=0,
        )
        self._changed.add(extent.pack)

    def lost(self, extent: Extent, now_ns: int) -> None:
        """The chunk record that pointed at *extent* is gone or points elsewhere."""
        record = self._records.get(extent.pack)
        if record is None:
            # A pack that was lost altogether; its chunks were known to be damaged.
            return
        chunks = record.live_chunks - 1
        record = record._replace(
            live_bytes=record.live_bytes - extent.stored_length, live_chunks=chunks
        )
        if chunks == 0:
            record = record._replace(flags=record.flags | layout.PACK_EMPTIED, emptied_ns=now_ns)
        self._records[extent.pack] = record
        self._changed.add(extent.pack)

    def removed(self, number: PackNo) -> None:
        """The pack's file is to go."""
        self._records.pop(number, None)
        self._changed.discard(number)
        self._overlay.delete(layout.PACKS, layout.pack_key(number))

    def save(self, packs: PackStore, now_ns: int) -> None:
        """Put lengths as of now, and what has changed, into the overlay: part of each commit."""
        for number, (size, sealed) in packs.sizes().items():
            record = self._records.get(number, _NEW)
            flags = record.flags | (layout.PACK_SEALED if sealed else 0)
            if sealed and not record.live_chunks and not record.flags & layout.PACK_EMPTIED:
                # Nothing that was stored in it was ever counted.
                flags |= layout.PACK_EMPTIED
                record = record._replace(emptied_ns=now_ns)
            if record.size != size or record.flags != flags or number not in self._records:
                self._records[number] = record._replace(size=size, flags=flags)
                self._changed.add(number)
        for number in self._changed:
            self._overlay.put(
                layout.PACKS, layout.pack_key(number), layout.pack_pack(self._records[number])
            )
        self._changed.clear()
