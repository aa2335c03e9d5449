"""Hashing in the background stands back for everything else, closing included."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path

import pytest
import trio

from cafs import hasher, newstore
from cafs.blobs.digests import Digests
from cafs.errors import ChunkDamagedError, IndexDamagedError
from cafs.operate.sweep import Sweeper
from cafs.store import Store, open_store
from cafs.types import ROOT, Attr, BlobNo, ChunkNo, Ino
from tests.unit.small_store import OPTIONS, PARAMS, assert_sound, noise, write


async def write_in_pieces(store: Store) -> Ino:
    """A file whose content has no digests yet."""
    ino = await write(store, ROOT, b"file", noise(1, 1000))
    store.contents.opened(ino, writable=True)
    await store.contents.write(ino, 500, b"written in pieces", privileged=True)
    await store.contents.settle(ino)
    store.contents.closed(ino, writable=True)
    assert store.contents.blobs.unhashed()
    return ino


async def close_while_hashing(path: Path) -> None:
    """Close the threads while a piece waits to be hashed."""
    async with open_store(path, OPTIONS) as store:
        release = threading.Event()
        store.aside.submit(release.wait, lambda _result, _error: None)
        while store.aside._jobs.qsize():
            await trio.sleep(0.001)
        await write_in_pieces(store)
        while not store.aside._jobs.qsize():
            await trio.sleep(0.001)
        # From here on the event loop is not reached by what the thread finishes.
        release.set()
        store.aside.close()


def test_a_store_that_is_closed_meanwhile_is_no_cause_for_concern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hasher, "PAUSE_S", 0.0)
    caplog.set_level(logging.INFO)
    newstore.create(tmp_path / "store", PARAMS)
    trio.run(close_while_hashing, tmp_path / "store")
    assert "hashing ends: the store is being closed" in caplog.text
    assert not [each for each in caplog.records if each.levelno > logging.INFO], caplog.text


async def hash_beside_a_writer(path: Path, written_s_ago: float) -> list[float]:
    """How long the pieces waited for their turn."""
    waited = []
    turn = hasher.Hasher._wait_for_writers

    async def timed(self: hasher.Hasher) -> None:
        self._contents.feeder.fed_at = trio.current_time() - written_s_ago
        began = trio.current_time()
        await turn(self)
        waited.append(trio.current_time() - began)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hasher.Hasher, "_wait_for_writers", timed)
        async with open_store(path, OPTIONS) as store:
            await write_in_pieces(store)
            with trio.fail_after(20):
                while store.contents.blobs.unhashed():
                    await trio.sleep(0.001)
    return waited


def test_it_gives_way_to_who_writes_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hasher, "PAUSE_S", 0.0)
    monkeypatch.setattr(hasher, "GIVE_WAY_S", 60.0)
    monkeypatch.setattr(hasher, "GIVE_WAY_MAX_S", 0.3)
    newstore.create(tmp_path / "one", PARAMS)
    assert min(trio.run(hash_beside_a_writer, tmp_path / "one", 1.0)) >= 0.3
    monkeypatch.setattr(hasher, "GIVE_WAY_MAX_S", 10.0)
    newstore.create(tmp_path / "two", PARAMS)
    waited = trio.run(hash_beside_a_writer, tmp_path / "two", 59.9)
    assert 0.05 < min(waited) < 10, "only until the writer has stopped"


async def change_while_it_waits(path: Path) -> None:
    waiting, go_on, done = trio.Event(), trio.Event(), trio.Event()
    one = hasher.Hasher._one

    async def held_up(_self: hasher.Hasher) -> None:
        waiting.set()
        await go_on.wait()

    async def told(self: hasher.Hasher, blob: BlobNo, ino: Ino, *, give_way: bool) -> bool:
        try:
            return await one(self, blob, ino, give_way=give_way)
        finally:
            done.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hasher.Hasher, "_wait_for_writers", held_up)
        patch.setattr(hasher.Hasher, "_one", told)
        async with open_store(path, OPTIONS) as store:
            ino = await write_in_pieces(store)
            with trio.fail_after(20):
                await waiting.wait()
                store.tree.unlink(ROOT, b"file")
                store.nameless.forget(ino)
                await store.commit()
                await Sweeper(store).once()
                go_on.set()
                await done.wait()


def test_what_is_deleted_while_it_waits_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hasher, "PAUSE_S", 0.0)
    newstore.create(tmp_path / "store", PARAMS)
    trio.run(change_while_it_waits, tmp_path / "store")
    assert not [each for each in caplog.records if each.levelno > logging.INFO], caplog.text


async def edit_between_two_pieces(path: Path) -> None:
    """Somebody opens a file, writes to it and closes it while its hashing gives way."""
    async with open_store(path, OPTIONS) as store:
        contents, before = store.contents, noise(1, 3000)
        ino = await write(store, ROOT, b"file", before)
        contents.opened(ino, writable=True)
        await contents.write(ino, 500, before[500:501], privileged=True)
        await contents.settle(ino)
        contents.closed(ino, writable=True)
        ((blob, _),) = store.blobs.unhashed()
        pieces = 0

        async def edited(_self: hasher.Hasher) -> None:
            nonlocal pieces
            pieces += 1
            if pieces == 2:
                contents.opened(ino, writable=True)
                await contents.write(ino, 10, b"edited", privileged=True)
                contents.closed(ino, writable=True)
                while contents.has_draft(ino):
                    await trio.sleep(0.001)

        with pytest.MonkeyPatch.context() as patch, trio.fail_after(20):
            patch.setattr(hasher.Hasher, "_wait_for_writers", edited)
            assert not await store.hasher._one(blob, ino, give_way=True)
        assert pieces == 2
        assert store.tree.inodes.get(ino).blob == blob, "it was edited in place"
        # What the file had before is not taken for what it has now.
        again = await write(store, ROOT, b"again", before)
        assert await contents.read(again, 0, 4000) == before
        assert await store.hasher.once() == 1
        after = before[:10] + b"edited" + before[16:]
        assert store.blobs.get(blob).sha256 == hashlib.sha256(after).digest()


def test_what_is_edited_meanwhile_does_not_get_the_digests_of_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hasher, "PAUSE_S", 1000.0)
    monkeypatch.setattr(hasher, "PIECE", 1000)
    newstore.create(tmp_path / "store", PARAMS)
    trio.run(edit_between_two_pieces, tmp_path / "store")


async def hash_twice_at_once(path: Path) -> None:
    async with open_store(path, OPTIONS) as store:
        ino = await write_in_pieces(store)
        ((blob, _),) = store.blobs.unhashed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.hasher.now, blob, ino)
            nursery.start_soon(store.hasher.now, blob, ino)
        record = store.blobs.get(blob)
        assert record.refs == 1
        data = await store.contents.read(ino, 0, 2000)
        assert record.sha256 == hashlib.sha256(data).digest()
        # What has its digests keeps them.
        assert store.blobs.hashed(blob, Digests(record.sha256, record.sha1)) == blob
        with pytest.raises(IndexDamagedError, match="is hashed"):
            store.blobs.hashed(blob, Digests(bytes(32), bytes(20)))


def test_two_may_hash_the_same_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hasher, "PAUSE_S", 1000.0)
    newstore.create(tmp_path / "store", PARAMS)
    trio.run(hash_twice_at_once, tmp_path / "store")
    assert_sound(tmp_path / "store")


async def meet_damage(path: Path) -> None:
    async with open_store(path, OPTIONS) as store:
        ino = await write_in_pieces(store)
        ((blob, _),) = store.blobs.unhashed()
        numbers = [ChunkNo(part.ref) for _, part in store.blobs.parts(blob, 0, 1000)]
        tried, bad = 0, True
        read = store.reader.read

        async def damaged(of: BlobNo, start: int, end: int) -> bytes | memoryview:
            nonlocal tried
            tried += of == blob
            if of == blob and bad:
                raise ChunkDamagedError(f"chunk {numbers[0]} is damaged")
            return await read(of, start, end)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store.reader, "read", damaged)
            assert not await store.hasher._all(give_way=True)
            assert not await store.hasher._all(give_way=True)
            assert tried == 1
            # Who asks for it has it tried at once.
            assert not await store.hasher.once()
            assert not await store.hasher.now(blob, ino)
            assert tried == 3
            patch.setattr(hasher, "STUCK_S", 0.0)
            assert not await store.hasher.once()
            assert not await store.hasher._all(give_way=True)
            assert tried == 5, "its time has come"
            patch.setattr(hasher, "STUCK_S", 600.0)
            assert not await store.hasher.once()
            bad = False
            assert not await store.hasher._all(give_way=True)
            # It may be whole again once it was written to.
            store.contents.opened(ino, writable=True)
            await store.contents.write(ino, 0, b"again", privileged=True)
            await store.contents.settle(ino)
            store.contents.closed(ino, writable=True)
            assert await store.hasher._all(give_way=True) == 1
        assert not store.blobs.unhashed()
        assert not await store.hasher._all(give_way=True)
        assert not store.hasher._stuck


def test_what_is_damaged_is_not_read_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hasher, "PAUSE_S", 1000.0)
    newstore.create(tmp_path / "store", PARAMS)
    trio.run(meet_damage, tmp_path / "store")
    assert "cannot be hashed for now: chunk 2 is damaged; what to do: " in caplog.text


async def meet_a_damaged_inode(path: Path) -> None:
    async with open_store(path, OPTIONS) as store:
        await write_in_pieces(store)
        good = await write(store, ROOT, b"good", noise(2, 1000))
        store.contents.opened(good, writable=True)
        await store.contents.write(good, 0, b"x", privileged=True)
        await store.contents.settle(good)
        store.contents.closed(good, writable=True)
        (_, bad), (_, last) = store.blobs.unhashed()
        assert last == good
        find = store.tree.inodes.find

        def damaged(ino: Ino) -> Attr | None:
            if ino == bad:
                raise IndexDamagedError("a bad page")
            return find(ino)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store.tree.inodes, "find", damaged)
            assert await store.hasher._all(give_way=True) == 1
        assert [ino for _, ino in store.blobs.unhashed()] == [bad]


def test_one_that_is_damaged_does_not_keep_others_from_their_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hasher, "PAUSE_S", 1000.0)
    newstore.create(tmp_path / "store", PARAMS)
    trio.run(meet_a_damaged_inode, tmp_path / "store")
