"""How much of a blob other blobs have, too.

A chunk's reference count says that somebody else uses it, not who: finding out takes one pass
over all recipes, which ends as soon as every reference has been met.  Invariant: nothing is
read when the counts already say that nobody does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from cafs.blobs import recipe
from cafs.index import layout
from cafs.index.layout import BLOB_ROWS
from cafs.operate.paths import STEP, Advance
from cafs.types import BlobNo, ChunkNo
from cafs.view import View


class Use(NamedTuple):
    """The chunks of one blob."""

    times: Mapping[ChunkNo, int]
    """How often the blob has each."""
    raw_bytes: int
    """Raw bytes of these chunks, each once."""
    stored_bytes: int
    """What they take in packs, each once."""
    shared: Mapping[ChunkNo, int]
    """Those that something else refers to as well: how often."""
    shared_bytes: int
    """Raw bytes of those, each once."""


def use_of(view: View, blob: BlobNo) -> Use:
    """Which chunks a blob has, and which of them are not its own alone.

    Of an aged blob those that it is made of.
    """
    times = Counter(recipe.chunk_refs(view.recipes(blob)))
    raw = stored = shared_raw = 0
    shared: dict[ChunkNo, int] = {}
    for number, own in times.items():
        record = view.chunks.get(number)
        raw += record.extent.raw_length
        stored += record.extent.stored_length
        if record.refs > own:
            shared[number] = record.refs - own
            shared_raw += record.extent.raw_length
    return Use(times, raw, stored, shared, shared_raw)


def sharers(view: View, blob: BlobNo, use: Use, advance: Advance | None = None) -> set[BlobNo]:
    """Other blobs that have one of the chunks in ``use.shared``, while a file has them.

    *advance* is told of at most as many records as there are blobs and rows of recipes.
    """
    left = sum(use.shared.values())
    wanted = frozenset(use.shared)
    found: set[BlobNo] = set()
    seen = 0
    # Short recipes lie in the blobs' records, long ones in rows of their own.
    for database in (layout.BLOBS, layout.RECIPES):
        if not left:
            break
        for key, value in view.overlay.scan(database, b"", b""):
            seen += 1
            if advance is not None and seen % STEP == 0:
                advance(seen)
            row = value
            if database == layout.BLOBS:
                if layout.blob_use(value)[1] & BLOB_ROWS:
                    continue
                row = layout.blob_row(value)
            refs = recipe.row_refs(row)
            if wanted.isdisjoint(refs):
                continue
            number = view.outer(BlobNo(layout.from_u48(key)))
            if number == blob:
                continue
            if number is not None:
                found.add(number)
            left -= sum(ref in wanted for ref in refs)
            if not left:
                break
    return {number for number in found if _in_use(view, number)}


def _in_use(view: View, number: BlobNo) -> bool:
    value = view.overlay.get(layout.BLOBS, layout.u48(number))
    return value is not None and layout.blob_use(value)[0] > 0
