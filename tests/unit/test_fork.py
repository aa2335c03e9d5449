"""Shared content that is changed in place is copied part by part, and holds nobody up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from cafs import contents, copying
from cafs.blobs import base, patching
from cafs.blobs.spool import Spool
from cafs.copying import copy_file
from cafs.errors import IndexDamagedError
from cafs.index.layout import BLOB_UNHASHED
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ROOT, Ino
from tests.model.storethread import QUIET, StoreThread
from tests.unit.small_store import PARAMS, assert_sound, in_store, noise, write

SIZE = 1_000_000
DATA = noise(1, SIZE)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(base, "FORKED_AT_ONCE", 100_000)
    monkeypatch.setattr(contents, "PARTS_AT_ONCE", 8)
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


async def _two(store: Store) -> tuple[Ino, Ino]:
    """Two files that share one blob."""
    one = await write(store, ROOT, b"one", DATA)
    await store.contents.finished(one)
    two = await copy_file(store, one, 0, 0)
    store.tree.place(two, ROOT, b"two")
    assert store.tree.inodes.get(one).blob == store.tree.inodes.get(two).blob
    await store.commit()
    return one, two


async def _patch(store: Store, ino: Ino) -> bytes:
    await store.contents.write(ino, SIZE // 2, b"patched", privileged=True)
    return DATA[: SIZE // 2] + b"patched" + DATA[SIZE // 2 + 7 :]


async def _append(store: Store, ino: Ino) -> bytes:
    await store.contents.write(ino, SIZE, b"appended", privileged=True)
    return DATA + b"appended"


async def _shorten(store: Store, ino: Ino) -> bytes:
    await store.contents.truncate(ino, SIZE - 300_000, privileged=True)
    return DATA[: SIZE - 300_000]


CHANGES = [_patch, _append, _shorten]


@pytest.mark.parametrize("change", CHANGES)
def test_others_have_their_turn_meanwhile(path: Path, change: Callable[..., object]) -> None:
    async def work(store: Store) -> None:
        one, two = await _two(store)
        shared = store.tree.inodes.get(one).blob
        parts = sum(1 for _ in store.blobs.parts(shared, 0, SIZE))
        # Each size that the growing copy of the recipe was seen at, by somebody else.
        seen: set[int] = set()

        async def look(scope: trio.CancelScope) -> None:
            with scope:
                while True:
                    for blob, _ in store.blobs.unhashed():
                        seen.add(store.blobs.get(blob).size)
                    await trio.lowlevel.checkpoint()

        store.contents.opened(two, writable=True)
        async with trio.open_nursery() as nursery:
            looking = trio.CancelScope()
            nursery.start_soon(look, looking)
            expected = await change(store, two)  # type: ignore[misc]
            await store.contents.settle(two)
            looking.cancel()
        assert len(seen) > 0.4 * parts / 8, "it was made in one go"
        store.contents.closed(two, writable=True)
        assert await store.contents.read(two, 0, 2 * SIZE) == expected
        assert await store.contents.read(one, 0, 2 * SIZE) == DATA
        assert store.tree.inodes.get(one).blob == shared
        assert not list(store.tree.inodes.orphans())
        await store.sync_all()

    in_store(path, work, QUIET)
    assert_sound(path)


@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_in_the_middle_leaves_nothing(path: Path, change: Callable[..., object]) -> None:
    thread = StoreThread(path)

    async def work(store: Store) -> None:
        _, two = await _two(store)
        store.contents.opened(two, writable=True)
        real = store.blobs.fork_more
        left = 4

        def fork_some(*arguments: int) -> int:
            nonlocal left
            left -= 1
            if not left:
                raise KeyError("here it stops")
            return real(*arguments)  # type: ignore[arg-type]

        store.blobs.fork_more = fork_some  # type: ignore[method-assign,assignment]
        keep = store.tree.reap
        store.tree.reap = lambda ino: None  # type: ignore[method-assign]
        with pytest.raises(KeyError):
            await change(store, two)  # type: ignore[misc]
            await store.contents.settle(two)
        store.tree.reap = keep  # type: ignore[method-assign]
        # A commit that falls between two steps, and then the kill.
        await store.committer.commit()

    thread.run(work)
    thread.crash()
    assert_sound(path)

    async def look(store: Store) -> None:
        for name in (b"one", b"two"):
            ino = store.tree.lookup(ROOT, name)
            assert ino is not None
            assert await store.contents.read(ino, 0, 2 * SIZE) == DATA
        assert not store.blobs.unhashed() or not list(store.tree.inodes.orphans())
        await store.sync_all()

    in_store(path, look, QUIET)
    assert_sound(path)


def test_a_copy_that_grows_is_not_hashed_before_it_has_a_name(path: Path) -> None:
    async def work(store: Store) -> None:
        one, _ = await _two(store)
        copy = store.tree.nameless(0o100644, 0, 0)
        fork = store.blobs.begin(copy)
        while store.blobs.fork_more(fork, store.tree.inodes.get(one).blob, 8):
            store.tree.publish(copy, fork, store.blobs.get(fork).size)
            assert await store.hasher.once() == 0
        assert store.blobs.get(fork).flags & BLOB_UNHASHED
        store.tree.place(copy, ROOT, b"copy")
        assert await store.hasher.once() == 1
        with pytest.raises(IndexDamagedError, match="is hashed"):
            store.blobs.fork_more(store.tree.inodes.get(one).blob, fork, 8)

    in_store(path, work, QUIET)
    assert_sound(path)


async def _unhashed(store: Store) -> Ino:
    """A file that is open for writing, and settled."""
    ino = await write(store, ROOT, b"file", DATA)
    store.contents.opened(ino, writable=True)
    await store.contents.write(ino, SIZE // 2, DATA[SIZE // 2 :][:1], privileged=True)
    await store.contents.settle(ino)
    assert store.blobs.unhashed()
    return ino


async def _at_both_ends(store: Store, ino: Ino) -> bytes:
    await store.contents.write(ino, 0, b"first", privileged=True)
    await store.contents.write(ino, SIZE - 4, b"then", privileged=True)
    return b"first" + DATA[5:-4] + b"then"


async def _nothing(_store: Store, _source: Ino) -> None:
    return None


async def _read_copy(store: Store, ino: Ino) -> bytes:
    copy = await copy_file(store, ino, 0, 0)
    data = await store.contents.read(copy, 0, 2 * SIZE)
    store.tree.place(copy, ROOT, b"copy")
    return data


@pytest.mark.parametrize("settled", [False, True])
def test_the_copy_of_a_long_recipe_is_of_one_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, settled: bool
) -> None:
    """What was written just before, comes into the blob when a part of its recipe is copied."""
    monkeypatch.setattr(copying, "FORKED_AT_ONCE", 100_000)
    monkeypatch.setattr(copying, "HASHED_AT_ONCE", 0)
    monkeypatch.setattr(copying, "PARTS_AT_ONCE", 8)

    async def work(store: Store) -> None:
        ino = await _unhashed(store)
        after = b""
        steps = 0

        async def written(_store: Store, _source: Ino) -> None:
            nonlocal after
            after = after or await _at_both_ends(store, ino)

        async def written_behind(_ino: Ino) -> None:
            await settle(ino)
            await written(store, ino)

        async def stepped() -> None:
            nonlocal steps
            steps += 1
            if steps == 2:
                await store.contents.settle_all()

        settle = store.contents.settle
        monkeypatch.setattr(copying, "_settled", _nothing if settled else written)
        if settled:
            monkeypatch.setattr(store.contents, "settle", written_behind)
        monkeypatch.setattr(store, "make_room", stepped)
        found = await _read_copy(store, ino)
        assert steps > 2
        assert found in (DATA, after)
        monkeypatch.undo()
        store.contents.closed(ino, writable=True)

    in_store(path, work, QUIET)
    assert_sound(path)


def test_a_copy_never_has_a_recipe_that_is_changed_half_way(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "HASHED_AT_ONCE", 0)
    monkeypatch.setattr(copying, "_settled", _nothing)
    half_way, go_on = trio.Event(), trio.Event()
    real = patching._settle_range

    async def settle_range(
        on: base.Base, spool: Spool, read: patching.Read, start: int, end: int
    ) -> int:
        if start:
            half_way.set()
            await go_on.wait()
        return await real(on, spool, read, start, end)

    async def work(store: Store) -> None:
        ino = await _unhashed(store)
        after = await _at_both_ends(store, ino)
        monkeypatch.setattr(patching, "_settle_range", settle_range)
        found = b""

        async def copied() -> None:
            nonlocal found
            found = await _read_copy(store, ino)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.contents.settle_all)
            await half_way.wait()
            nursery.start_soon(copied)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert found in (DATA, after)
        store.contents.closed(ino, writable=True)

    in_store(path, work, QUIET)
    assert_sound(path)
