"""Compaction: what is dead goes, whatever single packs are like, and nobody is held up by it."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import Counter
from pathlib import Path

import pytest
import trio

from cafs.blobs import chunks as chunks_module
from cafs.blobs.pack import PackStore
from cafs.blobs.sidecar import read_sidecar
from cafs.config import StoreParams
from cafs.errors import DiskError, from_os_error
from cafs.newstore import create
from cafs.operate import compact
from cafs.operate.compact import Compactor
from cafs.store import Store
from cafs.types import ROOT, PackNo
from tests.conftest import RunCafs
from tests.model.storethread import QUIET
from tests.unit.small_store import assert_sound, in_store, noise, write
from tests.unit.test_holes import be_full, delete

PARAMS = StoreParams(chunk_min=1024, chunk_avg=4096, chunk_max=8192, pack_size=4 << 20)
SIZE = 100_000
PACKS = 3
FILES = 5
"""In each pack; the first stays."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with packs that are mostly dead."""
    create(tmp_path / "store", PARAMS)
    in_store(tmp_path / "store", fill, QUIET)
    return tmp_path / "store"


def name(pack: int, number: int) -> bytes:
    return b"%d-%d" % (pack, number)


async def fill(store: Store) -> None:
    for pack in range(PACKS):
        for number in range(FILES):
            await write(store, ROOT, name(pack, number), noise(FILES * pack + number, SIZE))
        store.packs.roll()
        await store.sync_all()
    await delete(store, [name(pack, n) for pack in range(PACKS) for n in range(1, FILES)])


async def check(store: Store) -> None:
    for pack in range(PACKS):
        ino = store.tree.lookup(ROOT, name(pack, 0))
        assert ino is not None
        assert await store.contents.read(ino, 0, SIZE) == noise(FILES * pack, SIZE)


def packs(path: Path) -> set[str]:
    return {each.name for each in (path / "packs").glob("*.pack")}


OLD = {f"{number:08x}.pack" for number in range(1, PACKS + 1)}


def damage_sidecar(path: Path, what: str) -> None:
    side = path / "packs" / "00000002.side"
    if what == "lost":
        side.unlink()
        return
    data = bytearray(side.read_bytes())
    data[5 if what == "header" else len(data) // 2] ^= 1
    side.write_bytes(data)


@pytest.mark.parametrize("what", ["header", "record", "lost"])
def test_a_bad_sidecar_keeps_no_space_back(
    path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: Store) -> None:
        damage_sidecar(path, what)
        await Compactor(store).once(0.5, 0.0)
        assert "written anew from the index" in caplog.text
        assert not packs(path) & OLD
        await check(store)

    in_store(path, work, QUIET)
    assert_sound(path)


@pytest.mark.parametrize("what", ["header", "record", "lost"])
def test_a_bad_sidecar_keeps_no_space_back_on_a_full_disk(path: Path, what: str) -> None:
    async def work(store: Store) -> None:
        damage_sidecar(path, what)
        before = (path / "packs" / "00000002.pack").stat().st_blocks
        be_full(store)
        await Compactor(store).once(0.9, 0.0)
        after = (path / "packs" / "00000002.pack").stat().st_blocks
        assert (before - after) * 512 > SIZE
        extents = set(read_sidecar(path / "packs" / "00000002.side"))
        assert sum(each.stored_length for each in extents) == SIZE
        await check(store)

    in_store(path, work, QUIET)
    assert_sound(path)


def test_a_pack_that_cannot_be_read_does_not_stop_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_stored = PackStore.read_stored

    def fail(self: PackStore, pack: PackNo, offset: int, length: int) -> bytes:
        if pack == 1:
            raise from_os_error(OSError(errno.EIO, os.strerror(errno.EIO)), "read a bad sector")
        return read_stored(self, pack, offset, length)

    async def work(store: Store) -> None:
        compactor = Compactor(store)
        with monkeypatch.context() as broken:
            broken.setattr(PackStore, "read_stored", fail)
            await compactor.once(0.5, 0.0)
        assert packs(path) & OLD == {"00000001.pack"}
        assert "bad sector" in compactor.left[PackNo(1)]
        await compactor.whole(0.0)
        assert not compactor.left, "tried again because somebody asked"
        assert not packs(path) & OLD
        await check(store)

    in_store(path, work, QUIET)
    assert_sound(path)


def test_a_file_that_cannot_be_removed_does_not_stop_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = PackStore.remove

    def fail(self: PackStore, pack: PackNo) -> None:
        if pack == 3:
            raise DiskError("no unlink today")
        remove(self, pack)

    async def work(store: Store) -> None:
        compactor = Compactor(store)
        with monkeypatch.context() as broken:
            broken.setattr(PackStore, "remove", fail)
            await compactor.once(0.5, 0.0)
        assert packs(path) & OLD == {"00000003.pack"}
        assert await compactor.once(0.5, 0.0) > 0
        assert not packs(path) & OLD

    in_store(path, work, QUIET)
    assert_sound(path)


def test_the_command_names_what_it_left(path: Path, run_cafs: RunCafs) -> None:
    pack = path / "packs" / "00000002.pack"
    data = bytearray(pack.read_bytes())
    data[40] ^= 1
    pack.write_bytes(data)
    done = run_cafs("compact", path, "--json")
    assert done.returncode == 8, done.stderr
    answer = json.loads(done.stdout)
    assert answer["left_packs_count"] == 1
    assert [each["pack"] for each in answer["left_packs"]] == ["00000002"]
    assert packs(path) & OLD == {"00000002.pack"}
    done = run_cafs("compact", path)
    assert done.returncode == 8, done.stderr
    assert "pack 00000002 is left as it is: " in done.stdout
    assert "what to do" in done.stdout


def test_nobody_waits_for_lookups_or_for_files_that_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed_by: set[threading.Thread] = set()
    looked_up: Counter[int] = Counter()
    turns = 0
    remove = PackStore.remove

    def remove_somewhere(self: PackStore, pack: PackNo) -> None:
        removed_by.add(threading.current_thread())
        remove(self, pack)

    async def work(store: Store) -> None:
        at = store.chunks.at

        def look_up(sha256: bytes, pack: PackNo, offset: int) -> object:
            looked_up[turns] += 1
            return at(sha256, pack, offset)

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        monkeypatch.setattr(compact, "CHUNKS_AT_ONCE", 16)
        monkeypatch.setattr(store.chunks, "at", look_up)
        monkeypatch.setattr(PackStore, "remove", remove_somewhere)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await Compactor(store).once(0.5, 0.0)
            nursery.cancel_scope.cancel()
        assert not packs(path) & OLD

    in_store(path, work, QUIET)
    assert sum(looked_up.values()) > 100
    # Twice, because tasks that are ready run in any order.
    assert max(looked_up.values()) <= 32
    assert removed_by
    assert threading.main_thread() not in removed_by


def test_copies_do_not_gather_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsynced = []
    append = PackStore.append

    def note(self: PackStore, pieces: object) -> object:
        extents = append(self, pieces)  # type: ignore[arg-type]
        unsynced.append(self.unsynced_bytes)
        return extents

    monkeypatch.setattr(PackStore, "append", note)
    monkeypatch.setattr(compact, "BATCH", 30_000)
    monkeypatch.setattr(chunks_module, "UNSYNCED_MAX", 60_000)

    async def work(store: Store) -> None:
        # With a grace no commit comes between two packs.
        await Compactor(store).once(0.5, 3600.0)
        await check(store)

    in_store(path, work, QUIET)
    assert len(unsynced) > 3 * PACKS
    assert max(unsynced) < 60_000 + 2 * 30_000 + 8192


def test_nothing_is_moved_on_a_disk_that_fails(path: Path) -> None:
    async def work(store: Store) -> None:
        compactor = Compactor(store)
        before = store.packs.sizes()
        store.space.problem = DiskError("no sync today")
        await compactor.step()
        assert store.packs.sizes() == before
        store.space.problem = None
        await compactor.step()
        assert store.packs.sizes() != before

    in_store(path, work, QUIET)
    assert_sound(path)


def test_a_chunk_that_was_stored_twice_is_moved_out_of_both_places(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores of an older cafs may have such chunks."""

    async def work(store: Store) -> None:
        with monkeypatch.context() as forgetful:
            forgetful.setattr(store.chunks, "_take_committed", lambda _digests, _found: None)
            await write(store, ROOT, b"again", noise(0, SIZE))
            await write(store, ROOT, b"dead", noise(99, 4 * SIZE))
        store.packs.roll()
        await store.sync_all()
        await delete(store, [b"dead"])
        twice = set(store.packs.sizes())
        compactor = Compactor(store)
        await compactor.once(0.5, 0.0)
        assert not compactor.left
        assert not twice & set(store.packs.sizes())
        await check(store)

    in_store(path, work, QUIET)


def test_compacting_now_waits_for_what_it_emptied_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy store packs become empty all the time."""
    grace_s = 0.2

    async def work(store: Store) -> None:
        compactor = Compactor(store)
        once = compactor.once
        waited: list[float] = []
        rounds = 0

        async def once_beside_others(*args: object) -> int:
            nonlocal rounds
            rounds += 1
            freed = await once(*args)  # type: ignore[arg-type]
            await write(store, ROOT, b"more", noise(1000 + rounds, SIZE))
            await compactor._close_current()
            await store.sync_all()
            await delete(store, [b"more"])
            return freed

        def on_progress(_done: int, _total: int, waiting_s: float = 0.0) -> None:
            if waiting_s:
                waited.append(waiting_s)

        monkeypatch.setattr(compactor, "once", once_beside_others)
        with trio.fail_after(20):
            await compactor.whole(grace_s, on_progress)
        assert not packs(path) & OLD
        assert waited == [grace_s]

    in_store(path, work, QUIET)


def test_the_grace_has_a_bound(path: Path, run_cafs: RunCafs) -> None:
    done = run_cafs("compact", path, "--grace", "31d")
    assert done.returncode == 2
    assert "30d" in done.stderr
    assert packs(path) >= OLD
