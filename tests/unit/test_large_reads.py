"""Large reads: all parts of a recipe into one buffer, in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cafs.blobs import reader, recipe
from cafs.blobs.recipe import Part
from cafs.errors import ChunkDamagedError, IndexDamagedError
from cafs.store import Store
from cafs.types import ROOT, BlobNo, ChunkNo, PackNo
from tests.unit.small_store import in_store, make, noise, write

TEXT = b"".join(b"%d lines of text, which becomes shorter\n" % number for number in range(40_000))


async def content(store: Store) -> tuple[bytes, list[tuple[int, Part]]]:
    """Bytes, and parts that make them: chunks, with scraps and holes between them."""
    parts: list[Part] = []
    whole = bytearray()
    for name, data in ((b"noise", noise(7, 700_000)), (b"text", TEXT)):
        ino = await write(store, ROOT, name, data)
        await store.sync_all()
        blob = store.tree.inodes.get(ino).blob
        for _, part in store.blobs.parts(blob, 0, len(data)):
            parts += [part, recipe.literal(b"a scrap"), recipe.hole(3000)]
        at = 0
        for _, part in store.blobs.parts(blob, 0, len(data)):
            whole += data[at : at + part.length] + b"a scrap" + bytes(3000)
            at += part.length
    placed, at = [], 0
    for part in parts:
        placed.append((at, part))
        at += part.length
    assert at == len(whole) > 4 * reader.LARGE
    return bytes(whole), placed


def wanted(parts: list[tuple[int, Part]], start: int, end: int) -> list[tuple[int, Part]]:
    return [(at, part) for at, part in parts if at < end and at + part.length > start]


def test_every_stretch_is_right(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        whole, parts = await content(store)
        edges = [at + shift for at, _ in parts[:12] for shift in (0, 1, 2999)]
        for start in [*edges, 500_001, len(whole) - reader.LARGE]:
            for length in (reader.LARGE, reader.LARGE + 12_345, len(whole)):
                end = min(start + length, len(whole))
                if end - start < reader.LARGE:
                    continue
                # Beyond the end as well: what is there comes.
                for asked in {end, start + length}:
                    got = await store.reader.read_parts(wanted(parts, start, asked), start, asked)
                    assert bytes(got) == whole[start:end], (start, asked)
        hole = [(0, recipe.hole(1 << 40))]
        got = await store.reader.read_parts(hole, 1 << 30, (1 << 30) + reader.LARGE)
        assert bytes(got) == bytes(reader.LARGE)
        assert bytes(await store.reader.read_parts([], 0, reader.LARGE)) == b""

    in_store(make(tmp_path / "store"), work)


def test_slices_among_them_are_read_as_before(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        whole, parts = await content(store)
        part = parts[0][1]
        sliced = recipe.slice_of(ChunkNo(part.ref), 1, part.length - 1)
        got = await store.reader.read_parts([(1, sliced), *parts[1:]], 1, len(whole))
        assert bytes(got) == whole[1:]

    in_store(make(tmp_path / "store"), work)


def test_a_part_of_another_length_than_its_chunk_is_damage(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        whole, parts = await content(store)
        for change in (-1, 1):
            at, part = parts[0]
            wrong = recipe.chunk(ChunkNo(part.ref), part.length + change)
            with pytest.raises(IndexDamagedError):
                await store.reader.read_parts([(at, wrong), *parts[1:]], 0, len(whole))

    in_store(make(tmp_path / "store"), work)


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def _remove(path: Path, _offset: int) -> None:
    path.rename(path.with_suffix(".gone"))


@pytest.mark.parametrize("harm", [_flip, _remove])
def test_the_chunk_that_is_to_blame_is_named(
    tmp_path: Path, harm: Callable[[Path, int], None]
) -> None:
    path = make(tmp_path / "store")
    number = in_store(path, _blob)

    async def place(store: Store) -> tuple[ChunkNo, PackNo, int]:
        chunks = [part for _, part in store.blobs.parts(number, 0, len(TEXT))]
        chunk = ChunkNo(chunks[0 if harm is _remove else len(chunks) // 2].ref)
        extent = store.blobs.chunks.extent_of(chunk)
        return chunk, extent.pack, extent.offset

    chunk, pack, offset = in_store(path, place)
    harm(path / "packs" / f"{pack:08x}.pack", offset)

    async def work(store: Store) -> None:
        with pytest.raises(ChunkDamagedError) as caught:
            await store.reader.read(number, 0, len(TEXT))
        assert caught.value.chunk == chunk

    in_store(path, work)


async def _blob(store: Store) -> BlobNo:
    ino = await write(store, ROOT, b"text", TEXT)
    await store.sync_all()
    return store.tree.inodes.get(ino).blob
