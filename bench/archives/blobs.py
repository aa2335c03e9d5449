"""Puts blobs of the corpus into a blobstore, and reads them back bit for bit.

Invariant: nothing is believed; whatever is read is compared with the corpus's SHA-256, and a
read that ends early or late is a difference.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.archives import corpus
from bench.archives.corpus import Blob

_PIECE = 1 << 20
_PATIENCE_S = 120.0


class Read(NamedTuple):
    """One blob, read once."""

    first_byte_s: float
    """From the request, or from open, to the first byte."""
    seconds: float
    """To the last."""
    stall_s: float
    """The longest that no byte came ..."""
    stall_at: int
    """... and behind how many bytes that was."""
    bytes: int
    sha256: str


class UnlikeError(Exception):
    """A blob did not come back as it was put in."""


def copy_in(root: Path, blobs: list[Blob], target: Path) -> None:
    """Write *blobs* of the corpus in *root* below *target*, in their order, as a PUT does it.

    They are there under their names when they are whole, and acknowledged by fsync.
    """
    for blob in blobs:
        place = target / blob.path
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(f"{place.name}.new")
        with corpus.source(root, blob).open("rb") as source, aside.open("wb") as made:
            while piece := source.read(_PIECE):
                made.write(piece)
            made.flush()
            os.fsync(made.fileno())
        aside.replace(place)


def allocated(root: Path, blobs: list[Blob]) -> int:
    """What ext4 gives for *blobs*: their blocks, without directories."""
    return sum(corpus.source(root, blob).stat().st_blocks * 512 for blob in blobs)


def inflated(root: Path, blobs: list[Blob]) -> int:
    """How many bytes are inside gzip files of one member and less than 4 GiB (RFC 1952)."""
    found = 0
    for blob in blobs:
        with corpus.source(root, blob).open("rb") as opened:
            opened.seek(-4, os.SEEK_END)
            found += int.from_bytes(opened.read(4), "little")
    return found


def read_file(path: Path, like: Path | None = None) -> Read:
    """Read a file through a mount, and hold each piece to what is in *like*.

    Raises:
        OSError: it cannot be read.
        UnlikeError: a piece is not what it should be.
    """
    start = time.monotonic()
    fd = os.open(path, os.O_RDONLY)
    try:
        return _read(start, iter(lambda: os.read(fd, _PIECE), b""), str(path), like)
    finally:
        os.close(fd)


def read_http(port: int, path: str, headers: dict[str, str], like: Path | None = None) -> Read:
    """GET over TLS, from the connecting on, and hold each piece to what is in *like*.

    Raises:
        OSError: there is no answer, it is not 200, or it is cut off.
        UnlikeError: a piece is not what it should be.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    start = time.monotonic()
    connection = http.client.HTTPSConnection(
        "127.0.0.1", port, timeout=_PATIENCE_S, context=context
    )
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ConnectionError(f"GET {path}: status {answer.status}")
        announced = int(answer.headers["Content-Length"])
        read = _read(start, iter(lambda: answer.read1(_PIECE), b""), path, like)
        if read.bytes < announced:
            raise ConnectionError(f"GET {path}: cut off after {read.bytes:,} bytes")
        return read
    except http.client.HTTPException as error:
        raise ConnectionError(f"GET {path}: {error!r}") from None
    finally:
        connection.close()


def verify(blob: Blob, read: Read, how: str) -> None:
    """Raise UnlikeError unless *read* is what *blob* is."""
    if (read.bytes, read.sha256) != (blob.size, blob.sha256):
        raise UnlikeError(
            f"{blob.path} {how}: {read.bytes:,} bytes with SHA-256 {read.sha256}, "
            f"expected {blob.size:,} with {blob.sha256}"
        )


def _read(start: float, pieces: Iterator[bytes], what: str, like: Path | None) -> Read:
    digest = hashlib.sha256()
    size = stall_at = 0
    first = stall = 0.0
    last = start
    with open(like or os.devnull, "rb") as original:
        for piece in pieces:
            now = time.monotonic()
            if not size:
                first = now - start
            if now - last > stall:
                stall, stall_at = now - last, size
            if like is not None and original.read(len(piece)) != piece:
                raise UnlikeError(f"{what}: other bytes behind offset {size:,}")
            size += len(piece)
            digest.update(piece)
            # What comparing takes is not the other side's.
            last = time.monotonic()
    return Read(first, time.monotonic() - start, stall, stall_at, size, digest.hexdigest())
