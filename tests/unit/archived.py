"""Stores with real archives in them: made here, of the standard library's own files."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from cafs import newstore
from cafs.archive_options import ArchiveOptions
from cafs.archives.take_apart import Outcome
from cafs.config import MountOptions, StoreParams
from cafs.durable import Disk
from cafs.store import Store, open_store
from cafs.types import ROOT, BlobNo, Ino
from tests.unit.small_store import write

PARAMS = StoreParams(chunk_min=4096, chunk_avg=16384, chunk_max=65536)
OPTIONS = MountOptions(reserve=1 << 20, grace=0.0, commit_interval=60.0)
LIBRARY = Path(json.__file__).parents[1]
PACKAGES = ("json", "email", "logging", "unittest", "wsgiref", "sqlite3", "tomllib")


def sources(packages: Sequence[str] = PACKAGES) -> dict[str, bytes]:
    """Files of the standard library: about a megabyte if it is all of these packages."""
    return {
        str(path.relative_to(LIBRARY)): path.read_bytes()
        for name in packages
        for path in sorted((LIBRARY / name).glob("*.py"))
    }


def tar(files: dict[str, bytes], mtime: int = 1_700_000_000) -> bytes:
    """A tar as an app's staging would make it at some time."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number, (name, data) in enumerate(files.items()):
            info = tarfile.TarInfo(f"./app/{name}")
            info.size, info.mtime, info.mode = len(data), mtime + number, 0o644
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def gzipped(data: bytes, *arguments: str) -> bytes:
    """What GNU gzip makes of *data*."""
    command = ["gzip", "-c", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def droplet(mtime: int = 1_700_000_000, more: dict[str, bytes] | None = None) -> bytes:
    """A droplet: tar in GNU gzip -6."""
    return gzipped(tar(sources() | (more or {}), mtime))


@asynccontextmanager
async def opened(
    path: Path, archives: ArchiveOptions | None = None, disk: Disk | None = None
) -> AsyncIterator[Store]:
    """The store at *path*, made if it is not there."""
    if not path.exists():
        newstore.create(path, PARAMS)
    async with open_store(path, OPTIONS, disk=disk, archives=archives or ArchiveOptions()) as store:
        yield store


async def put(store: Store, name: bytes, data: bytes) -> Ino:
    """Make a file, and return when its blob has its digests."""
    ino = await write(store, ROOT, name, data)
    await store.contents.finished(ino)
    await store.commit()
    return ino


def blob_of(store: Store, ino: Ino) -> BlobNo:
    """The blob that a file has."""
    return store.tree.inodes.get(ino).blob


async def age(store: Store, ino: Ino) -> Outcome:
    """Take a file's content apart, which must succeed, and commit that."""
    outcome = await store.archives.take_apart(blob_of(store, ino))
    assert outcome.done, outcome.reason
    await store.commit()
    return outcome


async def content(store: Store, ino: Ino, piece: int = 512 << 10) -> bytes:
    """All of a file, read as an HTTP client reads it."""
    pieces = []
    size = store.contents.attr(ino).size
    for start in range(0, size, piece):
        pieces.append(await store.contents.read(ino, start, min(start + piece, size)))
    return b"".join(pieces)
