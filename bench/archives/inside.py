"""How a store holds its archives, as its index says.

Unlike most of the package it calls into cafs: what the commands count goes back to 0 when a
daemon is killed.  Only looks, at the newest commit.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from bench.archives import corpus
from bench.archives.corpus import Blob
from cafs.archives.engine_record import EngineRecord
from cafs.blobs import recipe
from cafs.index import layout
from cafs.types import BlobNo
from cafs.view import View

_LEAST_SIZE = 64 << 10
"""Bytes; smaller archives are left as they are (archives.age_min_size)."""


class Held(NamedTuple):
    """What is in a store."""

    aged: int
    """Blobs that are taken apart."""
    unhashed: int
    """Blobs whose digests are not known yet: they are no candidates."""
    streams: dict[str, int]
    """Kind of engine -> deflate streams that it makes."""


def look(store: Path) -> Held:
    """Go through the index of *store*, whether it is served or not."""
    aged = unhashed = 0
    numbers: Counter[int] = Counter()
    with View(store) as view:
        for key, value in view.overlay.scan(layout.BLOBS, b"", b""):
            refs, flags = layout.blob_use(value)
            if refs and flags & layout.BLOB_UNHASHED:
                unhashed += 1
            if not refs or not flags & layout.BLOB_AGED:
                continue
            aged += 1
            parts = view.blobs.parts(BlobNo(layout.from_u48(key)), 0, layout.blob_size(value))
            for _, part in parts:
                if part.kind == recipe.MADE and recipe.made(part).position == 0:
                    numbers[recipe.made(part).engine] += 1
        streams: Counter[str] = Counter()
        for number, count in numbers.items():
            record = view.overlay.get(layout.META, layout.engine_key(number))
            assert record is not None, f"engine {number} is not in the index"
            streams[EngineRecord.unpack(number, record).kind] += count
    return Held(aged, unhashed, dict(streams))


def streams(root: Path, blobs: list[Blob]) -> dict[str, int]:
    """Kind of engine -> streams in *blobs* that it might make: gzip files, members of zips."""
    found = {"gnu-gzip": 0, "zlib": 0}
    for blob in blobs:
        if blob.size < _LEAST_SIZE:
            continue
        if blob.type in ("droplets", "buildpack caches"):
            found["gnu-gzip"] += 1
        elif blob.type == "packages":
            with zipfile.ZipFile(corpus.source(root, blob)) as opened:
                members = opened.infolist()
            found["zlib"] += sum(m.compress_type == zipfile.ZIP_DEFLATED for m in members)
    return found
