"""Opening the packs of a store: what the index knows of them, and what a stop has left.

Invariant: when this is through, packs and sidecars are as the newest commit says, or the log
tells of each that is not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from cafs.blobs.chunks import Chunks
from cafs.blobs.pack import PackStore
from cafs.blobs.packtable import PackTable
from cafs.blobs.sidecar import SidecarRecord
from cafs.errors import IndexDamagedError
from cafs.index import layout, pages
from cafs.index.overlay import Overlay
from cafs.types import ChunkNo, PackNo

log = logging.getLogger(__name__)


def recover(
    packs: PackStore, table: PackTable, overlay: Overlay, next_no: int, store: Path
) -> dict[PackNo, int]:
    """Put right what was being written when the last daemon stopped.

    Returns the packs of which bytes are missing, and how many there are.
    """
    short = {}
    kept = 0
    known = {
        number: (record.size, bool(record.flags & layout.PACK_SEALED))
        for number, record in table.items()
    }
    empty = {number for number, record in table.items() if not record.live_chunks}
    for problem in packs.recover(known, PackNo(next_no), empty):
        if problem.kept:
            kept += 1
            log.warning("pack %08x: %s; it is kept as it is", problem.pack, problem.text)
        elif problem.sidecar_only:
            rewrite_sidecar(packs, overlay, problem.pack)
        else:
            text = "pack %08x: %s; what to do: cafs check %s"
            log.error(text, problem.pack, problem.text, store)
        if problem.length is not None:
            short[problem.pack] = problem.length
    if kept:
        # The index may be older than the packs: a copy, or a backup of another moment.
        text = "%d packs may have what is missing in others; what to do: unmount, then: %s %s"
        log.error(text, kept, "cafs rebuild", store)
    return short


def condemn(chunks: Chunks, overlay: Overlay, short: Mapping[PackNo, int]) -> None:
    """Mark the chunks that packs have lost: the same bytes, written again, must be stored."""
    lost = []
    try:
        for key, value in overlay.scan(layout.CHUNKS, b"", b"") if short else ():
            extent = layout.unpack_chunk(value).extent
            end = extent.offset + extent.stored_length
            if end > short.get(extent.pack, end):
                lost.append(ChunkNo(int.from_bytes(key, "big")))
    except IndexDamagedError as error:
        log.error("not all chunks of lost packs could be marked: %s", error)
    if lost:
        marked = chunks.condemn(lost, damaged=True)
        log.error("%d chunks are lost, %d of them since the last start", len(lost), marked)


def rewrite_sidecar(packs: PackStore, overlay: Overlay, pack: PackNo) -> None:
    """The disk took a sidecar or a part of it: the index has what it said.  Any thread."""
    records = []
    try:
        for _, value in overlay.scan(layout.CHUNKS, b"", b""):
            sha256, extent, _refs = layout.unpack_chunk(value)
            if extent.pack == pack:
                records.append(
                    SidecarRecord(
                        sha256,
                        offset=extent.offset,
                        stored_length=extent.stored_length,
                        codec=extent.as_sound().codec,
                        raw_length=extent.raw_length,
                        xxh3=extent.xxh3,
                    )
                )
    except IndexDamagedError as error:
        # What the sidecar still has may be what the chunk is found by.
        text = "the sidecar of pack %08x is left as it is: %s; what to do: %s"
        log.error(text, pack, error, pages.ADVICE)
        return
    packs.rewrite_sidecar(pack, records)
