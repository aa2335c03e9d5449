"""The sweep takes what is dead, goes around damage, and ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from cafs.index import layout, pages
from cafs.newstore import create
from cafs.operate.sweep import Sweeper
from cafs.store import Store, open_store
from cafs.types import ROOT
from cafs.view import View
from tests.unit.damaged_index import flip
from tests.unit.small_store import OPTIONS, PARAMS, findings, lookup, noise, write

NAMES = (b"first", b"second", b"third")


async def _remove(store: Store, name: bytes) -> None:
    ino, last = store.tree.unlink(ROOT, name)
    assert last
    store.nameless.forget(ino)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with three files of some chunks each."""
    path = tmp_path / "store"
    create(path, PARAMS)

    async def fill() -> None:
        async with open_store(path, OPTIONS) as store:
            for number, name in enumerate(NAMES):
                await write(store, ROOT, name, noise(number, 60_000))
            await store.sync_all()

    trio.run(fill)
    return path


def _damaged_key(path: Path, database: str) -> bytes:
    """The key of a record that belongs to the second file: a chunk in its middle, or its blob."""

    blob = lookup(path, b"second")[1].blob
    if database == "blobs":
        return layout.u48(blob)
    with View(path) as view:
        parts = [part for _, part in view.blobs.parts(blob, 0, 60_000)]
        assert len(parts) > 4
        return layout.u48(parts[len(parts) // 2].ref)


def _record(path: Path, database: str, key: bytes) -> bytes:
    """Key and value as they lie in the index."""
    found: list[bytes] = []

    def keep(name: str, at: bytes, value: bytes) -> None:
        if (name, at) == (database, key):
            found.append(at + value)

    pages.audit(path / "index", keep=keep)
    return found[0]


@pytest.mark.parametrize("database", ["chunks", "blobs"])
def test_it_goes_around_damage_and_says_so_once(
    path: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = _damaged_key(path, database)
    queue: list[bytes] = []

    async def remove_all() -> None:
        async with open_store(path, OPTIONS) as store:
            for name in NAMES:
                await _remove(store, name)
            await store.sync_all()

    async def sweep() -> None:
        async with open_store(path, OPTIONS) as store:
            chunks = store.counters.chunks
            sweeper = Sweeper(store)
            with trio.fail_after(30):
                swept = await sweeper.once()
                assert await sweeper.once() == 0
            # Two blobs with all their chunks went; the chunks of the third are referred to.
            assert swept == 2 + (chunks - store.counters.chunks)
            assert chunks // 2 < swept < chunks
            queue.extend(dead for dead, _ in store.overlay.scan(layout.DEAD, b"", b""))
            await store.sync_all()

    async def sweep_again() -> None:
        async with open_store(path, OPTIONS) as store:
            await Sweeper(store).once()
            assert (store.counters.blobs, store.counters.chunks) == (0, 0)
            await store.sync_all()

    trio.run(remove_all)
    file = path / "index" / pages.FILE
    sound = _record(path, database, key)
    flip(path / "index", database, key)
    damaged = sound[:-1] + bytes([sound[-1] ^ 1])
    with caplog.at_level(logging.ERROR, "cafs.operate.sweep"):
        trio.run(sweep)
    (said,) = [record.getMessage() for record in caplog.records if "dead" in record.getMessage()]
    assert "stays, because of damage" in said
    assert f"cafs check {path} --repair" in said
    assert len(queue) == 1
    # Nothing was counted half: with the record repaired the rest goes as if nothing had been.
    assert damaged in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(damaged, sound))
    assert not findings(path)
    trio.run(sweep_again)
    assert not findings(path)
