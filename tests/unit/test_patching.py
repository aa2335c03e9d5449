"""A small change in the middle of a file costs about as much as the part around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cafs.blobs.ingest import Ingest, Pieces, Slice
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ROOT, BlobNo, Ino
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
