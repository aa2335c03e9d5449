"""How a store holds its archives, as its index says.

Unlike most of the package it calls into cafs: what the commands count goes back to 0 when a
daemon is killed.  Only looks, at the newest commit.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple

from bench.archives import corpus
from bench.archives.corpus import Blob
from cafs.archives import gzip_format, zip_format
from cafs.archives.engine_record import EngineRecord
from cafs.archives.engine_run import DEPTH_MAX
from cafs.archives.nested_zip import LEAST
from cafs.blobs import recipe
from cafs.index import layout
from cafs.types import BlobNo
from cafs.view import View

NESTED = "nested"
"""Stands for the streams of archives that lie in others, whoever makes them."""
_MAGIC: Final = max(len(gzip_format.MAGIC), len(zip_format.MAGIC))
_LEAST_SIZE = 64 << 10
"""Bytes; smaller archives are left as they are (archives.age_min_size)."""


class Held(NamedTuple):
    """What is in a store."""

    aged: int
    """Blobs that are taken apart."""
    unhashed: int
    """Blobs whose digests are not known yet: they are no candidates."""
    streams: dict[str, int]
    """Kind of engine, or NESTED -> deflate streams that it makes."""


def look(store: Path) -> Held:
    """Go through the index of *store*, whether it is served or not."""
    aged = unhashed = 0
    numbers: Counter[int] = Counter()
    streams: Counter[str] = Counter()
    with View(store) as view:
        for key, value in view.overlay.scan(layout.BLOBS, b"", b""):
            refs, flags = layout.blob_use(value)
            if refs and flags & layout.BLOB_UNHASHED:
                unhashed += 1
            if not refs or not flags & layout.BLOB_AGED:
                continue
            aged += 1
            numbers.update(_engines(view, BlobNo(layout.from_u48(key))))
            inner = layout.unpack_blob(value).mate
            if view.blobs.get(inner).flags & layout.BLOB_NESTED:
                streams[NESTED] += sum(1 for _ in _engines(view, inner))
        for number, count in numbers.items():
            record = view.overlay.get(layout.META, layout.engine_key(number))
            assert record is not None, f"engine {number} is not in the index"
            streams[EngineRecord.unpack(number, record).kind] += count
    return Held(aged, unhashed, dict(streams))


def _engines(view: View, blob: BlobNo) -> Iterator[int]:
    """The number of the engine for each stream of a recipe."""
    for _, part in view.blobs.parts(blob, 0, view.blobs.get(blob).size):
        if part.kind == recipe.MADE and recipe.made(part).position == 0:
            yield recipe.made(part).engine


def streams(root: Path, blobs: list[Blob]) -> dict[str, int]:
    """What might be made again -> how many of it are in *blobs*.

    Gzip files, members of zips, and both again in what the gzip files hold.
    """
    found = {"gnu-gzip": 0, "zlib": 0, NESTED: 0}
    for blob in blobs:
        if blob.size < _LEAST_SIZE:
            continue
        if blob.type in ("droplets", "buildpack caches"):
            found["gnu-gzip"] += 1
            found[NESTED] += _nested(corpus.source(root, blob))
        elif blob.type == "packages":
            with zipfile.ZipFile(corpus.source(root, blob)) as opened:
                members = opened.infolist()
            found["zlib"] += sum(m.compress_type == zipfile.ZIP_DEFLATED for m in members)
    return found


def _nested(path: Path) -> int:
    """Streams of archives in a tar, and of archives in these."""
    count = 0
    with tarfile.open(path, "r|*") as members:
        for member in members:
            # Links have no content, and one to a member that is past cannot be followed.
            opened = members.extractfile(member) if member.isreg() else None
            if opened is not None:
                count += _streams_in(opened, 1)
    return count


def _streams_in(file: IO[bytes] | gzip.GzipFile, depth: int) -> int:
    """Streams of a file that may be an archive, as far as they are taken apart."""
    head = file.read(_MAGIC)
    if depth > DEPTH_MAX or not head.startswith((gzip_format.MAGIC, zip_format.MAGIC)):
        return 0
    whole = io.BytesIO(head + file.read())
    if head.startswith(gzip_format.MAGIC):
        with gzip.open(whole) as inside:
            return 1 + _streams_in(inside, depth + 1)
    count = 0
    try:
        with zipfile.ZipFile(whole) as opened:
            for each in opened.infolist():
                if each.compress_type == zipfile.ZIP_DEFLATED and each.compress_size > LEAST:
                    with opened.open(each) as inside:
                        count += 1 + _streams_in(inside, depth + 1)
    except zipfile.BadZipFile:
        return 0
    return count
