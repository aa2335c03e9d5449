"""A store whose archives need a program says so from its start, and keeps that program."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from cafs.archives.engine_copies import DIRECTORY
from cafs.archives.engine_record import EngineRecord
from cafs.errors import ChunkDamagedError, IndexDamagedError, RebuildError
from cafs.index import layout, pages
from cafs.mount.damage import CONTENT_ADVICE, _advice
from cafs.operate import engine_proofs
from cafs.store import Store
from cafs.types import ROOT
from tests.unit.archived import age, content, gzipped, opened, put, sources, tar
from tests.unit.small_store import change, findings

pytestmark = pytest.mark.timeout(60)
SMALL = gzipped(tar(sources(["json"])))


@pytest.fixture
def aged(tmp_path: Path) -> Path:
    """A store with one file that was taken apart, and without copies of what made it."""
    path = tmp_path / "store"

    async def fill() -> None:
        async with opened(path) as store:
            await age(store, await put(store, b"aged", SMALL))

    trio.run(fill)
    shutil.rmtree(path / DIRECTORY)
    return path


def started(path: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    async def run() -> None:
        async with opened(path) as store:
            with trio.fail_after(30):
                while not store.archives.opened:
                    await trio.sleep(0.01)
            await work(store)

    trio.run(run)


def lose(path: Path) -> None:
    """Let the index name another program than the machine's."""
    record = EngineRecord("gnu-gzip", "gzip 1.5", ("ab" * 32,))
    change(path, layout.META, layout.engine_key(1), record.pack())


def test_the_start_puts_copies_back(aged: Path) -> None:
    assert findings(aged) == {"engine-copy": 1}

    async def work(store: Store) -> None:
        assert list((aged / DIRECTORY).iterdir())
        assert store.status()["health"]["state"] == "ok"

    started(aged, work)
    assert not findings(aged)


def test_a_lost_engine_is_trouble_from_the_start(aged: Path) -> None:
    lose(aged)

    async def work(store: Store) -> None:
        assert "lost" in [each["state"] for each in engine_proofs.shown(store.archives)]
        health = store.status()["health"]
        assert health["state"] == "trouble"
        assert "gzip 1.5 (engine 1) is lost" in health["problem"]
        assert "backup" in health["what_to_do"]

    started(aged, work)


def test_a_store_without_archives_looks_for_no_engines(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path / "store") as store:
            await put(store, b"plain", SMALL)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert not store.archives.opened
            assert store.status()["health"]["state"] == "ok"

    trio.run(work)


def test_the_log_says_what_helps(aged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is gone is no reason to bring back an older index."""
    lose(aged)
    monkeypatch.setenv("PATH", str(aged))
    monkeypatch.setattr("os.defpath", str(aged))

    async def work(store: Store) -> None:
        ino = store.tree.lookup(ROOT, b"aged")
        assert ino is not None
        with pytest.raises(RebuildError) as caught:
            await content(store, ino)
        assert "STORE/engines" in _advice(caught.value)

    started(aged, work)
    assert pages.ADVICE not in _advice(RebuildError("it is another one"))
    assert _advice(ChunkDamagedError("a chunk")) == CONTENT_ADVICE
    assert _advice(IndexDamagedError("a record")) == pages.ADVICE
