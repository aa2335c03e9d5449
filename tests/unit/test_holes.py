"""Holes in packs: what is dead goes, what is alive stays, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from cafs.blobs.fileheader import HEADER_LENGTH
from cafs.blobs.sidecar import RECORD_LENGTH
from cafs.config import StoreParams
from cafs.errors import DiskFullError
from cafs.index import layout
from cafs.newstore import create
from cafs.operate.compact import Compactor
from cafs.operate.sweep import Sweeper
from cafs.store import Store
from cafs.types import ROOT, ChunkNo
from tests.model.storethread import QUIET
from tests.unit.small_store import assert_sound, in_store, noise, write

PARAMS = StoreParams(chunk_min=1024, chunk_avg=4096, chunk_max=8192, pack_size=4 << 20)
NAMES = [b"file%d" % number for number in range(12)]
SIZE = 300_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


def blocks(path: Path) -> int:
    return sum(each.stat().st_blocks * 512 for each in (path / "packs").glob("*.pack"))


async def fill(store: Store) -> None:
    for seed, name in enumerate(NAMES):
        await write(store, ROOT, name, noise(seed, SIZE))
    store.packs.roll()
    await store.sync_all()
    # That commit sealed the pack; that it is sealed is in the next one.
    store.pack_table.save(store.packs, store.clock.now_ns())
    await store.commit()


async def delete(store: Store, names: list[bytes]) -> None:
    for name in names:
        ino, last = store.tree.unlink(ROOT, name)
        assert last
        store.nameless.forget(ino)
    await Sweeper(store).once()
    await store.commit()


async def check(store: Store, names: list[bytes]) -> None:
    for name in names:
        ino = store.tree.lookup(ROOT, name)
        assert ino is not None
        assert await store.contents.read(ino, 0, SIZE) == noise(NAMES.index(name), SIZE)


def be_full(store: Store) -> None:
    """What a write that finds no room does."""
    store.space.problem = DiskFullError("full")


def test_a_full_disk_gets_back_what_is_dead_after_the_grace(path: Path) -> None:
    async def work(store: Store) -> None:
        await fill(store)
        before = blocks(path)
        compactor = Compactor(store)
        await delete(store, NAMES[:2])
        be_full(store)
        assert await compactor.once(0.9, 3600.0) == 0, "the grace has only begun"
        assert blocks(path) == before
        freed = await compactor.once(0.9, 0.0)
        assert freed == before - blocks(path)
        assert freed > 2 * SIZE - 10 * 4096
        be_full(store)
        assert await compactor.once(0.9, 0.0) == 0, "once is enough"
        # What dies later is found later.
        await delete(store, NAMES[5:6])
        be_full(store)
        assert await compactor.once(0.9, 0.0) > SIZE - 10 * 4096
        await check(store, NAMES[2:5] + NAMES[6:])

    in_store(path, work, QUIET)
    assert_sound(path)

    async def afterwards(store: Store) -> None:
        """With room again the pack is rewritten as ever."""
        await delete(store, NAMES[6:])
        await Compactor(store).once(0.5, 0.0)
        await check(store, NAMES[2:5])
        assert blocks(path) < 4 * SIZE

    in_store(path, afterwards, QUIET)
    assert_sound(path)


def test_a_sidecar_that_lacks_chunks_makes_no_hole(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_store(path, fill, QUIET)
    sidecars = sorted((path / "packs").glob("*.side"))
    assert sidecars
    whole = sidecars[0].read_bytes()
    records = (len(whole) - HEADER_LENGTH) // RECORD_LENGTH
    sidecars[0].write_bytes(whole[: HEADER_LENGTH + records // 2 * RECORD_LENGTH])

    async def work(store: Store) -> None:
        before = blocks(path)
        await delete(store, NAMES[:2])
        be_full(store)
        assert await Compactor(store).once(0.9, 0.0) == 0
        assert blocks(path) == before
        await check(store, NAMES[2:])

    in_store(path, work, QUIET)
    assert "what is dead in pack 00000001 is left" in caplog.text


def test_what_heals_a_damaged_chunk_is_alive_before_the_index_says_so(path: Path) -> None:
    async def work(store: Store) -> None:
        await write(store, ROOT, NAMES[0], noise(0, SIZE))
        await store.sync_all()
        lost = [ChunkNo(int.from_bytes(key, "big")) for key, _ in _chunk_records(store)]
        store.chunks.condemn(lost, damaged=True)
        await store.commit()
        store.packs.roll()
        # The same bytes once more: they are in a pack, and no record has them there yet.
        again = await write(store, ROOT, b"again", noise(0, SIZE))
        await write(store, ROOT, b"other", noise(99, SIZE))
        store.packs.roll()
        store.chunks.write_back()
        store.pack_table.save(store.packs, store.clock.now_ns())
        be_full(store)
        compactor = Compactor(store)
        await compactor.once(0.9, 0.0)
        be_full(store)
        await compactor.once(0.9, 0.0)
        assert await store.contents.read(again, 0, SIZE) == noise(0, SIZE)
        await store.commit()
        await check(store, NAMES[:1])

    in_store(path, work, QUIET)


def _chunk_records(store: Store) -> list[tuple[bytes, bytes]]:
    return list(store.overlay.scan(layout.CHUNKS, b"", b""))


def test_a_pack_that_was_copied_goes_before_the_next_is_copied(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else many packs that are half dead would fill the disk that they are to make room on."""
    took = []

    def free() -> int:
        took.append(blocks(path))
        return 1 << 30

    async def work(store: Store) -> None:
        for pack in range(4):
            for number in range(12):
                await write(store, ROOT, b"%d-%d" % (pack, number), noise(13 * pack + number, SIZE))
            store.packs.roll()
            await store.sync_all()
        await delete(store, [b"%d-%d" % (pack, n) for pack in range(4) for n in range(7)])
        monkeypatch.setattr(store.space, "free", free)
        await Compactor(store).once(0.5, 0.0)

    in_store(path, work, QUIET)
    assert max(took) <= took[0] + 6 * SIZE
    assert blocks(path) < took[0] // 2
    assert_sound(path)
