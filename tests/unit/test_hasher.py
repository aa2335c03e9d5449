"""Hashing in the background stands back for everything else, closing included."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
import trio

from cafs import hasher, newstore
from cafs.operate.sweep import Sweeper
from cafs.store import Store, open_store
from cafs.types import ROOT, BlobNo, Ino
from tests.unit.small_store import OPTIONS, PARAMS, noise, write


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
