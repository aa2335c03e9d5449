"""Blobs that were taken apart, without any program that could make their bytes.

What the index says of them is all that such a test needs: the made parts name an engine that has
a record, and nobody runs it.
"""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

import trio
import xxhash

from cafs import storefile
from cafs.archives.engine_copies import Copies
from cafs.archives.engine_record import EngineRecord
from cafs.archives.program import Program
from cafs.blobs import recipe
from cafs.blobs.digests import Digests
from cafs.blobs.ingest import Pieces, Slice
from cafs.blobs.recipe import Part
from cafs.index import layout
from cafs.index.layout import AGED_VERSION
from cafs.store import Store
from cafs.types import BlobNo, ChunkNo, Ino
from tests.unit.engine_samples import MACHINE_GZIP

PROGRAM = Program.read(MACHINE_GZIP)
ENGINE = EngineRecord("gnu-gzip", "gzip 1.12", (PROGRAM.sha256,))
HEADERS = 40
"""Bytes of each header that a slice stands for."""


class Pair(NamedTuple):
    """An aged blob and its inner one."""

    outer: BlobNo
    inner: BlobNo
    content: bytes
    """Of the outer one; nothing here could make it again."""
    inflated: bytes


def noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, the same ones for the same seed."""
    return random.Random(seed).randbytes(length)


def digests(data: bytes) -> Digests:
    """Both digests."""
    return Digests(hashlib.sha256(data).digest(), hashlib.sha1(data).digest())


def record_engine(store: Store) -> None:
    """The record of engine 1, its program, and the version that goes with it."""
    store.file = storefile.upgrade(store.path, AGED_VERSION, store.disk)
    Copies(store.path, store.disk).write(PROGRAM)
    store.overlay.put(layout.META, layout.engine_key(1), ENGINE.pack())


async def stored(store: Store, data: bytes) -> list[Part]:
    """Parts of content that was stored; their chunks are pinned."""
    ingest = store.contents.ingest
    given = Slice(data, True, True)
    (cut,) = await store.workers.run(lambda: ingest.store([ingest.split(given)]))
    return cut.parts


async def gathered(store: Store, headers: bytes, files: bytes) -> tuple[list[Part], bytes]:
    """An inner blob: before each part of *files* a slice of one chunk; pinned; and its bytes."""
    ingest = store.contents.ingest
    whole = Pieces([memoryview(headers)], len(headers), True)
    (cut,) = await store.workers.run(lambda: ingest.store([whole]))
    (chunk,) = cut.parts
    assert chunk.kind == recipe.CHUNK
    number = ChunkNo(chunk.ref)
    parts: list[Part] = []
    content = b""
    at = done = 0
    for part in await stored(store, files):
        if at + HEADERS <= len(headers):
            parts.append(recipe.slice_of(number, at, HEADERS))
            content += headers[at : at + HEADERS]
            at += HEADERS
        parts.append(part)
        content += files[done : done + part.length]
        done += part.length
    # One pin for each part that names it, as for chunks that are named several times.
    store.chunks.pin_again([number] * (at // HEADERS - 1))
    return parts, content


def made_parts(content: bytes, raw_length: int, piece: int = 10_000) -> list[Part]:
    """A header as a literal, and the rest as the output of engine 1 for the whole inner blob."""
    parts = [recipe.literal(content[:10])] if content else []
    for at in range(10, len(content), piece):
        data = content[at : at + piece]
        how = recipe.Made(xxhash.xxh3_64_intdigest(data), 1, 6, 0, raw_length, at - 10)
        parts.append(recipe.made_part(len(data), how))
    return parts


async def hashed(store: Store, ino: Ino) -> BlobNo:
    """The blob of a file that was written, once it has its digests; all committed."""
    await store.sync_all()
    while store.blobs.get(number := store.tree.inodes.get(ino).blob).flags & layout.BLOB_UNHASHED:
        await store.hasher.now(number, ino)
        await trio.sleep(0.001)
    await store.commit()
    return store.tree.inodes.get(ino).blob


def swap(store: Store, number: BlobNo, outer: list[Part], inner: list[Part], sha256: bytes) -> bool:
    """Aged.swap() with recipes that are given as parts, whose chunks are pinned."""
    aged = store.blobs.aged
    return aged.swap(number, aged._drafted(outer), aged._drafted(inner), sha256)


async def plain(store: Store, seed: int, length: int = 50_000) -> tuple[BlobNo, bytes]:
    """A blob that nobody refers to yet, and its content."""
    content = noise(seed, length)
    parts = await stored(store, content)
    return store.blobs.adopt(parts, length, digests(content)), content


async def aged(store: Store, seed: int, length: int = 50_000) -> Pair:
    """A blob with one reference that was taken apart."""
    number, content = await plain(store, seed, length)
    store.blobs.ref(number)
    return await age(store, number, content, seed)


async def age(store: Store, number: BlobNo, content: bytes, seed: int) -> Pair:
    """Take a blob apart; its inner blob has content of its own."""
    record_engine(store)
    inner_parts, inflated = await gathered(store, noise(seed + 1, 2000), noise(seed + 2, 60_000))
    outer_parts = made_parts(content, len(inflated))
    sha256 = digests(inflated).sha256
    assert swap(store, number, outer_parts, inner_parts, sha256)
    return Pair(number, store.blobs.get(number).mate, content, inflated)
