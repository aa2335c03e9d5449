"""Who waits for a commit is told the truth: not early, not late, and of every fault."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from cafs.clock import SystemClock
from cafs.config import MountOptions, StoreParams
from cafs.errors import CafsError, DiskFullError
from cafs.index import layout
from cafs.index.committer import Committer
from cafs.index.overlay import Layer, Overlay
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ROOT
from tests.model.storethread import StoreThread
from tests.unit.test_overlay import Index
from tests.unit.test_overlay import index as index


class Scene:
    """A committer over a real index, whose writes can be held up and made to fail."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.overlay = Overlay(index.environment)
        self.committer = Committer(self.overlay, self.prepare, self.write, SystemClock())
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.faults: list[Exception] = []
        self.layers: list[Layer] = []
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def write(self, layer: Layer) -> None:
        self.layers.append(layer)
        self.entered.release()
        assert self.gate.wait(30)
        if self.faults:
            raise self.faults.pop(0)
        self.index.writer.write(layer)

    def put(self, key: bytes) -> None:
        self.overlay.put(layout.INODES, key, b"value")

    def committed(self, key: bytes) -> bool:
        with self.index.environment.begin() as txn:
            return txn.get(key, db=self.index.environment.databases[layout.INODES]) is not None

    async def began(self) -> None:
        await trio.to_thread.run_sync(self.entered.acquire)


@asynccontextmanager
async def scene(index: Index) -> AsyncIterator[Scene]:
    it = Scene(index)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.committer.run)
        yield it
        it.gate.set()
        nursery.cancel_scope.cancel()
    it.overlay.close()


def run(index: Index, play: Callable[[Scene], object]) -> None:
    async def main() -> None:
        async with scene(index) as it:
            with trio.fail_after(30):
                await play(it)  # type: ignore[misc]

    trio.run(main)


def test_commit_returns_when_the_change_is_on_disk(index: Index) -> None:
    async def play(it: Scene) -> None:
        it.put(b"one")
        await it.committer.commit()
        assert it.committed(b"one")
        await it.committer.commit()  # nothing is left to do
        assert len(it.layers) == 1

    run(index, play)


def test_many_who_wait_share_a_commit(index: Index) -> None:
    async def play(it: Scene) -> None:
        it.gate.clear()
        it.put(b"first")
        done: list[int] = []

        async def wait(number: int) -> None:
            await it.committer.commit()
            assert it.committed(b"shared%d" % number)
            done.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.committer.commit)
            await it.began()
            for number in range(20):
                it.put(b"shared%d" % number)
                nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
            assert not done, "the commit that is under way does not hold these"
            it.gate.set()
        assert len(done) == 20
        assert len(it.layers) == 2

    run(index, play)


def test_a_fault_is_told_and_the_layer_kept(index: Index) -> None:
    async def play(it: Scene) -> None:
        failed: list[CafsError] = []
        it.committer.failed.append(failed.append)
        it.faults.append(DiskFullError("full"))
        it.put(b"kept")
        with pytest.raises(DiskFullError):
            await it.committer.commit()
        assert len(failed) == 1
        assert it.overlay.get(layout.INODES, b"kept") == b"value", "it stays visible"
        assert not it.committed(b"kept")
        it.put(b"later")
        await it.committer.commit()
        assert it.committed(b"kept") and it.committed(b"later")
        assert it.layers[0] is it.layers[1], "the very same layer is tried again"
        assert it.prepared == 2, "and is not prepared anew"
        assert it.committer.error is None

    run(index, play)


def test_one_who_asks_during_an_attempt_does_not_hear_of_its_fault(index: Index) -> None:
    async def play(it: Scene) -> None:
        it.gate.clear()
        it.faults.append(DiskFullError("full"))
        it.put(b"early")
        async with trio.open_nursery() as nursery:

            async def early() -> None:
                with pytest.raises(DiskFullError):
                    await it.committer.commit()

            nursery.start_soon(early)
            await it.began()
            it.put(b"late")
            nursery.start_soon(it.committer.commit)  # raises if it hears of the fault
            await trio.testing.wait_all_tasks_blocked()
            it.gate.set()
        assert it.committed(b"late")

    run(index, play)


def test_a_defect_does_not_end_the_committer(index: Index) -> None:
    async def play(it: Scene) -> None:
        it.faults.append(ValueError("a defect"))
        it.put(b"survives")
        with pytest.raises(CafsError, match="defect"):
            await it.committer.commit()
        await it.committer.commit()
        assert it.committed(b"survives")

    run(index, play)


def test_nobody_has_to_wait_for_a_commit_that_was_urged(index: Index) -> None:
    async def play(it: Scene) -> None:
        thawed = trio.Event()
        it.committer.thawed.append(thawed.set)
        it.put(b"urged")
        it.committer.urge()
        await thawed.wait()
        assert it.committed(b"urged")

    run(index, play)


def test_a_store_that_is_always_busy_commits_at_its_interval(tmp_path: Path) -> None:
    """Files that need more than a job to be finished come one after the other, without a pause."""
    create(tmp_path / "store", StoreParams())
    thread = StoreThread(tmp_path / "store", MountOptions(commit_interval=0.05))

    async def keep_busy(store: Store) -> None:
        ino = store.tree.create(ROOT, b"patched", 0o100644, 0, 0)
        begun = store.counters.generation
        with trio.fail_after(30):
            while store.counters.generation < begun + 3:
                store.contents.opened(ino, writable=True)
                await store.contents.write(ino, 1000, b"again and again", privileged=True)
                store.contents.closed(ino, writable=True)
                await trio.lowlevel.checkpoint()

    thread.run(keep_busy)
    thread.close()


def test_what_takes_long_to_be_stored_holds_up_no_other_change(tmp_path: Path) -> None:
    create(tmp_path / "store", StoreParams())
    options = MountOptions(commit_interval=0.05, ingest_threads=1)
    thread = StoreThread(tmp_path / "store", options)
    go_on = threading.Event()

    async def change_beside(store: Store) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.workers.run, go_on.wait)
            try:
                ino = store.tree.create(ROOT, b"slow", 0o100644, 0, 0)
                store.contents.opened(ino, writable=True)
                await store.contents.write(ino, 1000, b"x" * 100_000, privileged=True)
                store.contents.closed(ino, writable=True)
                with trio.fail_after(30):
                    for number in range(3):
                        begun = store.counters.generation
                        store.tree.create(ROOT, b"%d" % number, 0o100644, 0, 0)
                        while store.counters.generation == begun:
                            await trio.sleep(0.01)
                assert store.contents.has_draft(ino)
            finally:
                go_on.set()

    thread.run(change_beside)
    thread.close()
