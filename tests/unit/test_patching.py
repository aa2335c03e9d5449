"""A small change in the middle of a file costs about as much as the part around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.ingest import Ingest, Pieces, Slice
from cafs.blobs.recipe import Part
from cafs.copying import copy_file
from cafs.index.layout import BlobRecord
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ROOT, Attr, BlobNo, Ino
from tests.unit.small_store import PARAMS, assert_sound, in_store, noise, write

SIZE = 1_000_000
DATA = noise(2, SIZE)
PLACES = [0, 3, 50_000, 499_999, 812_345, SIZE - 5]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


def test_little_more_than_the_changed_part_is_cut_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    split = Ingest.split

    def counted(self: Ingest, given: Slice) -> Pieces:
        sizes.append(len(given.data))
        return split(self, given)

    async def work(store: Store) -> None:
        ino = await write(store, ROOT, b"file", DATA)
        await store.contents.finished(ino)
        await store.commit()
        monkeypatch.setattr(Ingest, "split", counted)
        expected = bytearray(DATA)
        for place in PLACES:
            await store.contents.write(ino, place, b"other", privileged=True)
            expected[place : place + 5] = b"other"
        await store.contents.settle(ino)
        assert await store.contents.read(ino, 0, SIZE) == expected

    in_store(path, work)
    assert len(sizes) >= len(PLACES) - 1, "two of the places lie in one part"
    # Now and then the border behind the change is none any more, and more must be looked at.
    assert sorted(sizes)[len(sizes) // 2] <= PARAMS.chunk_max + 64
    assert sum(sizes) <= 4 * len(PLACES) * PARAMS.chunk_max
    assert_sound(path)


def test_a_change_up_to_the_end_and_beyond(path: Path) -> None:
    async def work(store: Store) -> None:
        ino = await write(store, ROOT, b"file", DATA)
        await store.contents.finished(ino)
        await store.contents.write(ino, SIZE - 3, b"beyond", privileged=True)
        await store.contents.write(ino, SIZE + 9_000, b"far", privileged=True)
        await store.contents.write(ino, 0, b"start", privileged=True)
        await store.contents.settle(ino)
        expected = bytearray(DATA + bytes(9_003))
        expected[SIZE - 3 : SIZE + 3] = b"beyond"
        expected[SIZE + 9_000 :] = b"far"
        expected[:5] = b"start"
        assert await store.contents.read(ino, 0, len(expected)) == expected

    in_store(path, work)
    assert_sound(path)


def test_a_change_of_nothing_but_a_hole(path: Path) -> None:
    async def work(store: Store) -> None:
        ino = await write(store, ROOT, b"file", b"x")
        await store.contents.truncate(ino, 300_000, privileged=True)
        await store.contents.write(ino, 100_000, b"island", privileged=True)
        await store.contents.settle(ino)
        expected = bytearray(b"x" + bytes(299_999))
        expected[100_000:100_006] = b"island"
        assert await store.contents.read(ino, 0, 300_000) == expected

    in_store(path, work)
    assert_sound(path)


def test_a_file_of_holes_is_not_gone_through_for_each_of_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, step, looked_at = 1000, 100_000, 0
    parts_of = Blobs.parts_of

    def counted(
        self: Blobs, number: BlobNo, record: BlobRecord, start: int, end: int
    ) -> Iterator[tuple[int, Part]]:
        nonlocal looked_at
        for found in parts_of(self, number, record, start, end):
            looked_at += 1
            yield found

    async def islands(store: Store, ino: Ino, first: int) -> None:
        for place in range(first, count, 2):
            await store.contents.write(ino, place * step, b"x", privileged=True)
        await store.contents.settle(ino)
        attr = store.tree.inodes.get(ino)
        assert attr.aux == attr.size - recipe.total_length(_stored(store, attr))

    async def work(store: Store) -> None:
        monkeypatch.setattr(Blobs, "parts_of", counted)
        ino = await write(store, ROOT, b"file", b"")
        await islands(store, ino, 0)
        copy = await copy_file(store, ino, 0, 0)
        store.tree.place(copy, ROOT, b"copy")
        await islands(store, copy, 1)

    in_store(path, work)
    assert looked_at <= 20 * count
    assert_sound(path)


def _stored(store: Store, attr: Attr) -> list[Part]:
    parts = store.blobs.parts(attr.blob, 0, attr.size)
    return [part for _, part in parts if part.kind != recipe.HOLE]


@pytest.mark.parametrize("before", [0, 1, SIZE])
def test_what_is_written_behind_the_end_comes_with_its_hole(
    path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """A commit may fall between any two states that are published: there is none between."""
    sizes: list[int] = []

    async def work(store: Store) -> None:
        ino = await write(store, ROOT, b"file", DATA[:before])
        await store.contents.finished(ino)
        publish = store.tree.publish

        def published(target: Ino, blob: BlobNo, size: int) -> None:
            if target == ino:
                sizes.append(size)
            publish(target, blob, size)

        monkeypatch.setattr(store.tree, "publish", published)
        far = before + 200_000
        await store.contents.write(ino, far, noise(3, 5000), privileged=True)
        await store.contents.settle(ino)
        assert await store.contents.read(ino, 0, SIZE * 2) == (
            DATA[:before] + bytes(200_000) + noise(3, 5000)
        )

    in_store(path, work)
    assert set(sizes) <= {before, before + 205_000}
    assert_sound(path)
