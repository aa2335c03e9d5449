"""Who was shown how much room a file takes hears when that changes by itself."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from cafs.newstore import create
from cafs.notices import Change, InodeChanged
from cafs.store import Store
from cafs.types import ROOT, Ino
from tests.unit.small_store import PARAMS, assert_sound, in_store, noise, write

HOLE = 100_000
TAIL = noise(3, 20_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


class _Listener:
    """What a store tells, as it comes."""

    def __init__(self, store: Store) -> None:
        self._send, self._receive = trio.open_memory_channel[Change](100)
        store.notices.register(self._take)

    async def _take(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._send.send_nowait(change)

    async def next(self) -> Change:
        with trio.fail_after(30):
            return await self._receive.receive()


async def _with_a_hole(store: Store) -> Ino:
    ino = store.tree.create(ROOT, b"hole", stat.S_IFREG | 0o644, 0, 0)
    store.contents.opened(ino, writable=True)
    await store.contents.write(ino, HOLE, TAIL, privileged=True)
    await store.contents.settle(ino)
    return ino


def test_the_end_of_what_counted_twice_is_told(path: Path) -> None:
    async def work(store: Store) -> None:
        ino, listener = await _with_a_hole(store), _Listener(store)
        contents = store.contents
        # Nobody looks at the first: nothing is told of it.
        unseen = await write(store, ROOT, b"unseen", TAIL)
        await contents.write(unseen, 5, b"other", privileged=True)
        await contents.settle(unseen)
        await contents.write(ino, HOLE + 5, noise(4, 10_000), privileged=True)
        assert contents.attr(ino).aux == HOLE - 10_000
        await contents.settle(ino)
        assert contents.attr(ino).aux == HOLE
        assert await listener.next() == InodeChanged(ino)
        contents.closed(ino, writable=True)

    in_store(path, work)
    assert_sound(path)


def test_holes_that_are_those_of_other_content_are_told(path: Path) -> None:
    """Digests show that the content was there already, written as zeros."""

    async def work(store: Store) -> None:
        full = await write(store, ROOT, b"full", bytes(HOLE) + TAIL)
        await store.contents.finished(full)
        ino = await _with_a_hole(store)
        store.contents.closed(ino, writable=True)
        await store.contents.finished(ino)
        assert store.contents.attr(ino).aux == HOLE
        listener = _Listener(store)
        assert await store.hasher.once() == 1
        assert store.contents.attr(ino).blob == store.contents.attr(full).blob
        assert store.contents.attr(ino).aux == 0
        assert await listener.next() == InodeChanged(ino)

    in_store(path, work)
    assert_sound(path)


def test_holes_in_place_change_the_record(path: Path) -> None:
    async def work(store: Store) -> None:
        ino = await _with_a_hole(store)
        await store.contents.write(ino, 1000, TAIL, privileged=True)
        await store.contents.settle(ino)
        assert store.tree.inodes.get(ino).aux == HOLE - len(TAIL)
        store.contents.closed(ino, writable=True)

    in_store(path, work)
    assert_sound(path)
