"""The part of a scrub that proves archives: some of those that were taken apart are made again.

That their chunks are sound says nothing of the programs that are needed besides.  A random
sample, because to make all of them again would take a processor days.  Looks only.  Invariant:
an archive counts as proven only if all of its bytes have its SHA-256.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from cafs.errors import CafsError, DamagedError
from cafs.index import layout
from cafs.index.layout import BLOB_AGED
from cafs.operate.readable import Unreadable, rows
from cafs.types import BlobNo
from cafs.view import View

SAMPLE_MAX: Final = 10
SAMPLE_BYTES_MAX: Final = 512 << 20
"""Bytes of content that are made again at most: about half a minute of a core."""


class NotRebuilt(NamedTuple):
    """An archive that does not come out as it went in."""

    blob: BlobNo
    sha256: bytes
    why: str
    advice: str


class Proven(NamedTuple):
    """What became of the sample."""

    aged_count: int
    """Archives that are taken apart, in the whole store."""
    rebuilt_count: int
    rebuilt_bytes: int
    failed: list[NotRebuilt]


def prove_some(
    view: View,
    chosen: random.Random,
    on_progress: Callable[[int, int], None],
    unreadable: Unreadable | None = None,
) -> Proven:
    """Make some archives again; *on_progress* is told how many of how many.

    *unreadable* gets the records of blobs that cannot be read: these are not in the sample.
    """
    aged_count, sample = _sample(view, chosen, unreadable)
    rebuilt = size = 0
    failed: list[NotRebuilt] = []
    for done, blob in enumerate(sample):
        on_progress(done, len(sample))
        expected = bytes(32)
        sha256 = hashlib.sha256()
        try:
            expected = view.blobs.get(blob).sha256
            for piece in view.content(blob):
                sha256.update(piece)
                size += len(piece)
        except CafsError as error:
            failed.append(NotRebuilt(blob, expected, str(error), error.advice))
            continue
        if sha256.digest() == expected:
            rebuilt += 1
        else:
            why = f"it is made again with the SHA-256 {sha256.hexdigest()}"
            failed.append(NotRebuilt(blob, expected, why, ""))
    on_progress(len(sample), len(sample))
    return Proven(aged_count, rebuilt, size, failed)


def _sample(
    view: View, chosen: random.Random, unreadable: Unreadable | None = None
) -> tuple[int, list[BlobNo]]:
    """How many there are, and some of them, each as likely as any other."""
    kept: list[tuple[float, BlobNo, int]] = []
    count = 0
    for blob, inner in _aged(view, {} if unreadable is None else unreadable):
        count += 1
        kept.append((chosen.random(), blob, inner))
        if len(kept) > 8 * SAMPLE_MAX:
            kept = sorted(kept)[:SAMPLE_MAX]
    sample: list[BlobNo] = []
    total = 0
    for _, blob, inner in sorted(kept)[:SAMPLE_MAX]:
        try:
            total += view.blobs.get(BlobNo(inner)).size
        except DamagedError:
            # Making it again says what is wrong.
            pass
        if total <= SAMPLE_BYTES_MAX or not sample:
            sample.append(blob)
    return count, sample


def _aged(view: View, unreadable: Unreadable) -> Iterator[tuple[BlobNo, int]]:
    for key, value in rows(view, layout.BLOBS, unreadable):
        try:
            refs, flags = layout.blob_use(value)
            if refs and flags & BLOB_AGED:
                yield BlobNo(layout.from_u48(key)), layout.unpack_blob(value).mate
        except DamagedError as error:
            unreadable[layout.BLOBS, key] = str(error)
