"""The invariants of storage: chunks, where they lie, and the packs that hold them.

One method an invariant, over one snapshot of the index; see cafs.operate.check_tree.  Looks at
the names, lengths and headers of pack files, and reads no chunk: that is what a scrub does.
Changes nothing.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping

from cafs.blobs.fileheader import HEADER_LENGTH
from cafs.errors import CafsError
from cafs.index import layout
from cafs.index.layout import ChunkRecord, PackRecord
from cafs.operate.check_content import DEAD, IN_SHA256, ContentCheck, missing_digest
from cafs.operate.finding import Change, Finding, Findings
from cafs.operate.tally import Tally
from cafs.types import PackNo
from cafs.view import View

_LENGTH_BITS = 24
_COUNT_MAX = (1 << 32) - 1


class PackCheck:
    """Checks of one snapshot's chunks and packs.  The methods are called in their order."""

    def __init__(self, view: View, chunks: Tally) -> None:
        self._view = view
        self._overlay = view.overlay
        self._chunks = chunks
        self._places: dict[int, array[int]] = {}
        self._figures = {"chunks": 0, "raw_bytes": 0, "stored_bytes": 0}

    def check_chunks(self) -> Findings:
        """Counts, queue, digest and extent of each chunk."""
        sizes = {number: record.size for number, record in self._view.pack_table.items()}
        for rank, (key, value) in enumerate(self._overlay.scan(layout.CHUNKS, b"", b"")):
            number = layout.from_u48(key)
            record = layout.unpack_chunk(value)
            extent, marks = record.extent, self._chunks.marks[rank]
            refs = self._chunks.counts[rank]
            self._figures["chunks"] += 1
            self._figures["raw_bytes"] += extent.raw_length
            self._figures["stored_bytes"] += extent.stored_length
            if record.refs != refs:
                fixed = record._replace(refs=min(refs, _COUNT_MAX))
                yield Finding(
                    "chunk-refs",
                    f"chunk {number} has reference count {record.refs}, "
                    f"but {refs} parts of recipes name it",
                    "the count is put right",
                    ((layout.CHUNKS, key, layout.pack_chunk(fixed)),),
                )
            yield from ContentCheck.check_queued(b"c", number, refs, queued=bool(marks & DEAD))
            if not marks & IN_SHA256:
                yield missing_digest("chunk", layout.CHUNK_SHA256, record.sha256, number)
            if extent.damaged and refs:
                yield _known_damage(number, record)
            size = sizes.get(extent.pack)
            end = extent.offset + extent.stored_length
            if size is None or extent.offset < HEADER_LENGTH or end > size:
                yield _gone(
                    "extent",
                    number,
                    record,
                    f"lies at {extent.offset} of pack {extent.pack:08x}, "
                    + ("which is not known" if size is None else f"which has {size} bytes"),
                )
            self._places.setdefault(extent.pack, array("Q")).append(
                extent.offset << _LENGTH_BITS | extent.stored_length
            )

    def check_overlaps(self) -> Findings:
        """No two chunks lie on the same bytes of a pack."""
        for pack, places in self._places.items():
            end = 0
            for place in sorted(places):
                offset = place >> _LENGTH_BITS
                if offset < end:
                    yield Finding(
                        "overlap",
                        f"two chunks lie over each other at {offset} of pack {pack:08x}",
                        "find out which is right: cafs scrub STORE",
                    )
                end = max(end, offset + (place & (1 << _LENGTH_BITS) - 1))

    def check_packs(self) -> Findings:
        """Each pack's figures are those of its chunks, and its files are there and long enough."""
        short: dict[PackNo, int] = {}
        for number, record in self._view.pack_table.items():
            places = self._places.get(number, array("Q"))
            live = sum(place & (1 << _LENGTH_BITS) - 1 for place in places)
            if (record.live_bytes, record.live_chunks) != (live, len(places)):
                fixed = record._replace(live_bytes=live, live_chunks=len(places))
                if not places:
                    fixed = fixed._replace(flags=fixed.flags | layout.PACK_EMPTIED, emptied_ns=1)
                else:
                    fixed = fixed._replace(flags=fixed.flags & ~layout.PACK_EMPTIED, emptied_ns=0)
                yield Finding(
                    "pack-figures",
                    f"pack {number:08x} notes {record.live_chunks} chunks with "
                    f"{record.live_bytes} bytes, but has {len(places)} with {live}",
                    "the record is put right",
                    ((layout.PACKS, layout.pack_key(number), layout.pack_pack(fixed)),),
                )
            yield from self._check_files(number, record, short)
        if short:
            yield from self._chunks_beyond(short)

    def _check_files(
        self, number: PackNo, record: PackRecord, short: dict[PackNo, int]
    ) -> Findings:
        """Looks at one pack; notes its length in *short* if its chunks must be looked at."""
        packs = self._view.packs
        problem = ""
        try:
            length = os.stat(packs.pack_path(number)).st_size
            if length < min(record.size, self._newest_size(number)):
                problem = f"has {length} bytes, but {record.size} were committed"
            else:
                packs.check_header(number)
        except FileNotFoundError:
            length, problem = 0, "is missing"
        except OSError as error:
            length, problem = 0, f"cannot be looked at: {error.strerror}"
        except CafsError as error:
            problem = f"has a damaged header: {error}"
        # Compaction may have taken it away since the snapshot: ask the newest commit.
        if problem and record.live_chunks and self._still_known(number):
            yield Finding(
                "pack-file",
                f"pack {number:08x} {problem}",
                f"restore {packs.pack_path(number)} from a backup, or delete or restore the "
                "files that lose content",
            )
            short[number] = length
        sealed = record.flags & layout.PACK_SEALED and record.live_chunks
        has_sidecar = os.path.exists(packs.sidecar_path(number))
        if sealed and not problem and not has_sidecar and self._still_known(number):
            yield Finding(
                "sidecar",
                f"pack {number:08x} has no sidecar",
                "the next start of the daemon writes it anew",
            )

    def _still_known(self, number: PackNo) -> bool:
        return self._newest_size(number) > 0

    def _newest_size(self, number: PackNo) -> int:
        """Its length as of the newest commit: less than in the snapshot where an upload has
        failed since; 0 when it is gone.
        """
        environment = self._view.environment
        with environment.begin() as txn:
            value = environment.get(txn, layout.PACKS, layout.pack_key(number))
        return 0 if value is None else layout.unpack_pack(value).size

    def _chunks_beyond(self, short: Mapping[PackNo, int]) -> Findings:
        """Chunks that packs of these lengths have lost."""
        for key, value in self._overlay.scan(layout.CHUNKS, b"", b""):
            record = layout.unpack_chunk(value)
            extent = record.extent
            end = extent.offset + extent.stored_length
            length = short.get(extent.pack, end)
            if end > length and not extent.damaged:
                yield _gone(
                    "chunk-lost",
                    layout.from_u48(key),
                    record,
                    f"lay at {extent.offset} of pack {extent.pack:08x}, which ends at {length}",
                )

    def figures(self) -> dict[str, int]:
        """What the counters must say, after check_chunks()."""
        return dict(self._figures)

    @property
    def last(self) -> int:
        """The greatest pack number in use, by packs or by chunks that lie in one that is lost."""
        return max(
            (*self._places, *(number for number, _ in self._view.pack_table.items())), default=0
        )


def _gone(kind: str, number: int, record: ChunkRecord, text: str) -> Finding:
    marked = record._replace(extent=record.extent.as_damaged())
    changes: tuple[Change, ...] = ((layout.CHUNKS, layout.u48(number), layout.pack_chunk(marked)),)
    return Finding(
        kind,
        f"chunk {number} (SHA-256 {record.sha256.hex()}) {text}",
        "it is marked as damaged: the same content, written again, heals it",
        () if record.extent.damaged else changes,
    )


def _known_damage(number: int, record: ChunkRecord) -> Finding:
    return Finding(
        "damaged-chunk",
        f"chunk {number} (SHA-256 {record.sha256.hex()}) is marked as damaged",
        "write the same content again (restore a file that has it), or delete the files; "
        "cafs scrub STORE names them",
    )
