"""Blobs that have lost their records: what is left of them is enough for most.

A long recipe has rows of its own, and content that is one chunk has that chunk's SHA-256.  The
rows of the digest tables say which blob it was.  Invariant: a record is made only of content
that was read and has the digests that these rows begin with.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Final

from cafs.blobs import recipe
from cafs.blobs.recipe import Part
from cafs.errors import CafsError, IndexDamagedError
from cafs.index import layout
from cafs.index.layout import BLOB_HOLES, BLOB_ROWS, BlobRecord
from cafs.operate.tally import Tally
from cafs.types import ChunkNo
from cafs.view import View

_HOLES_MAX: Final = 1 << 30
"""Bytes of zeros that are hashed to get a blob back."""


def remake_blobs(view: View) -> int:
    """Put the records of blobs that can be had back into the overlay of *view*; how many.

    Their references are counted later.
    """
    known = Tally()
    for key, _ in view.overlay.scan(layout.BLOBS, b"", b""):
        known.append(layout.from_u48(key))
    sha256 = _prefixes(view, layout.BLOB_SHA256, known)
    if not sha256:
        return 0
    sha1 = _prefixes(view, layout.BLOB_SHA1, known)
    chunks = _chunks(view, {prefix for found in sha256.values() for prefix in found})
    remade = 0
    for number, found in sorted(sha256.items()):
        wanted = found, sha1.get(number, [])
        if any(len(each) != 1 for each in wanted):
            # Which of them is right is not known.
            continue
        record = _of_rows(view, number) or _of_chunk(view, chunks.get(found[0], []))
        if record is None:
            continue
        prefixes = [[record.sha256[: layout.DIGEST_PREFIX]], [record.sha1[: layout.DIGEST_PREFIX]]]
        if list(wanted) == prefixes:
            view.overlay.put(layout.BLOBS, layout.u48(number), layout.pack_blob(record))
            remade += 1
    return remade


def _prefixes(view: View, database: int, known: Tally) -> dict[int, list[bytes]]:
    """What the digests of blobs without a record begin with, by number."""
    found: defaultdict[int, list[bytes]] = defaultdict(list)
    for key, _ in view.overlay.scan(database, b"", b""):
        number = layout.digest_number(key)
        if known.rank(number) < 0:
            found[number].append(key[: layout.DIGEST_PREFIX])
    return found


def _chunks(view: View, prefixes: Collection[bytes]) -> dict[bytes, list[ChunkNo]]:
    """Chunks whose SHA-256 begins with one of these."""
    found: defaultdict[bytes, list[ChunkNo]] = defaultdict(list)
    for key, _ in view.overlay.scan(layout.CHUNK_SHA256, b"", b""):
        prefix = key[: layout.DIGEST_PREFIX]
        if prefix in prefixes:
            found[prefix].append(ChunkNo(layout.digest_number(key)))
    return found


def _of_rows(view: View, number: int) -> BlobRecord | None:
    """The record of a blob whose recipe lies in rows; None if it has none, or not a whole one."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    size = holes = 0
    try:
        for part in _parts(view, number):
            size += part.length
            holes += part.length if part.kind == recipe.HOLE else 0
            if holes > _HOLES_MAX:
                return None
            for piece in view.offline.stored(part):
                sha256.update(piece)
                sha1.update(piece)
    except CafsError:
        # What it needs is lost, or it was taken apart.
        return None
    if not size:
        return None
    flags = BLOB_ROWS | (BLOB_HOLES if holes else 0)
    return BlobRecord(size, 0, flags, sha256.digest(), sha1.digest(), b"")


def _parts(view: View, number: int) -> Iterator[Part]:
    prefix = layout.u48(number)
    at = 0
    for key, row in view.overlay.scan(layout.RECIPES, prefix, prefix):
        if layout.recipe_start(key) != at:
            raise IndexDamagedError(f"the recipe of blob {number} has nothing for byte {at}")
        for part in recipe.decode(row):
            at += part.length
            yield part


def _of_chunk(view: View, numbers: list[ChunkNo]) -> BlobRecord | None:
    """The record of a blob that is one chunk, if there is just one that it can be."""
    if len(numbers) != 1:
        return None
    try:
        record = view.chunks.get(numbers[0])
        data = view.read_chunk(numbers[0], record.extent)
    except CafsError:
        return None
    digests = hashlib.sha256(data).digest(), hashlib.sha1(data, usedforsecurity=False).digest()
    parts = recipe.encode([recipe.chunk(numbers[0], len(data))])
    return BlobRecord(len(data), 0, 0, *digests, parts)
