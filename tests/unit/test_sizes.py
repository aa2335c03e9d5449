"""Files as large as they may be, files of older stores that are larger, and sums of all that."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from cafs.errors import FsError
from cafs.newstore import create
from cafs.store import Store
from cafs.tree import sizes
from cafs.types import ROOT, Ino
from tests.unit.small_store import PARAMS, assert_sound, in_store

HUGE = (1 << 63) - 1
NAMES = (b"one", b"two", b"three")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


async def _fill(store: Store) -> None:
    """Files that only a store of before could have: together they are more than a u64 holds."""
    for name in NAMES:
        ino = store.tree.create(ROOT, name, stat.S_IFREG | 0o644, 0, 0)
        await store.contents.truncate(ino, HUGE, privileged=True)
    await store.sync_all()


def _found(store: Store, name: bytes) -> Ino:
    ino = store.tree.lookup(ROOT, name)
    assert ino is not None
    return ino


def _sums(store: Store) -> tuple[int, int]:
    return store.counters.logical_bytes, store.counters.blob_bytes


def test_sums_of_sizes_do_not_keep_a_commit_from_being_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "SIZE_MAX", HUGE)
    in_store(path, _fill)
    assert_sound(path)

    async def shrink(store: Store) -> None:
        for name in NAMES:
            await store.contents.truncate(_found(store, name), 5, privileged=True)
        await store.sync_all()
        assert _sums(store) == (15, 15), "right again as soon as they fit"

    in_store(path, shrink)
    assert_sound(path)


def test_what_is_larger_already_is_read_and_made_smaller(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(sizes, "SIZE_MAX", HUGE)
        in_store(path, _fill)

    async def use(store: Store) -> None:
        contents, one = store.contents, _found(store, b"one")
        assert await contents.read(one, HUGE - 3, HUGE) == bytes(3)
        for offset in (sizes.SIZE_MAX, HUGE - 1):
            with pytest.raises(FsError) as refused:
                await contents.write(one, offset, b"x", privileged=True)
            assert refused.value.errno == errno.EFBIG
        await contents.write(one, 100, b"changed", privileged=True)
        await contents.truncate(one, HUGE, privileged=True)
        await contents.truncate(one, HUGE - 1, privileged=True)
        with pytest.raises(FsError) as refused:
            await contents.truncate(one, HUGE, privileged=True)
        assert refused.value.errno == errno.EFBIG
        await store.sync_all()
        assert contents.attr(one).size == HUGE - 1
        await contents.truncate(one, 107, privileged=True)
        await store.sync_all()
        assert await contents.read(one, 0, 200) == bytes(100) + b"changed"
        for name in NAMES[1:]:
            ino, _ = store.tree.unlink(ROOT, name)
            store.nameless.forget(ino)
        await store.sync_all()
        assert _sums(store) == (107, 107)

    in_store(path, use)
    assert_sound(path)


def test_a_write_gets_in_what_there_is_room_for() -> None:
    assert sizes.room_at(0) == sizes.SIZE_MAX
    assert sizes.room_at(sizes.SIZE_MAX - 1) == 1
    for offset in (sizes.SIZE_MAX, HUGE):
        with pytest.raises(FsError) as refused:
            sizes.room_at(offset)
        assert refused.value.errno == errno.EFBIG
