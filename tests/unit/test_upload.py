"""Blobs that arrive from outside the mount: whole, or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from functools import partial
from pathlib import Path

import pytest
import trio

from cafs import upload
from cafs.errors import CafsError, FsError
from cafs.newstore import create
from cafs.store import Store, open_store
from cafs.types import ROOT
from tests.fault.faulty import Fault, FaultyDisk
from tests.model.storethread import QUIET
from tests.unit import small_store
from tests.unit.small_store import PARAMS, assert_sound

MIB = 1 << 20
OPTIONS = dataclasses.replace(QUIET, commit_interval=0.05)


in_store = partial(small_store.in_store, options=OPTIONS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


async def put(store: Store, name: bytes, data: bytes, mtime_ns: int | None = None) -> None:
    async with upload.begin(store, 0o600, 7, 8) as incoming:
        for start in range(0, len(data), 100_000):
            await incoming.write(data[start : start + 100_000])
        await incoming.finish()
        gone = incoming.place(ROOT, name, mtime_ns)
        if gone is not None:
            store.nameless.forget(gone)
        await store.commit()


def test_an_upload(path: Path) -> None:
    data = os.urandom(3 * MIB)

    async def work(store: Store) -> None:
        await put(store, b"x", data, 5 * 10**9)
        ino = store.tree.lookup(ROOT, b"x")
        assert ino is not None
        attr = store.contents.attr(ino)
        assert (attr.mode, attr.uid, attr.gid) == (stat.S_IFREG | 0o600, 7, 8)
        assert (attr.size, attr.mtime_ns, attr.nlink) == (len(data), 5 * 10**9, 1)
        assert await store.contents.read(ino, 0, len(data)) == data
        await put(store, b"x", b"shorter", 6 * 10**9)
        await put(store, b"empty", b"")
        assert store.counters.files == 2

    async def again(store: Store) -> None:
        ino = store.tree.lookup(ROOT, b"x")
        assert ino is not None
        assert await store.contents.read(ino, 0, 100) == b"shorter"
        assert store.contents.attr(ino).mtime_ns == 6 * 10**9

    in_store(path, work)
    assert_sound(path)
    in_store(path, again)


def test_what_is_given_up_leaves_nothing(path: Path) -> None:
    async def work(store: Store) -> None:
        await put(store, b"x", b"old")
        for size in (0, 10, 2 * MIB):
            with pytest.raises(ValueError, match="the client"):
                async with upload.begin(store, 0o600, 0, 0) as incoming:
                    await incoming.write(os.urandom(size))
                    raise ValueError("the client went away")
        await store.sync_all()
        while list(store.tree.inodes.orphans()):
            # A job that was under way when it was given up ends in its own time.
            await trio.sleep(0.01)
        assert store.contents.being_written == 0
        assert store.contents.pending_bytes == 0
        assert (store.counters.files, store.counters.logical_bytes) == (1, 3)

    in_store(path, work)
    assert_sound(path)


def test_what_a_crash_in_the_middle_would_leave_is_an_orphan(path: Path) -> None:
    data = os.urandom(4 * MIB)

    async def work(store: Store) -> None:
        async with upload.begin(store, 0o600, 0, 0) as incoming:
            await incoming.write(data)
            await store.sync_all()
            # All of it is on disk, and it has no name: what a start after a crash removes.
            assert store.overlay.pending == 0
            assert list(store.tree.inodes.orphans()) == [incoming.ino]
            assert store.counters.files == 0
            incoming.place(ROOT, b"x", None)

    in_store(path, work)
    assert_sound(path)


def test_it_cannot_take_the_place_of_a_directory(path: Path) -> None:
    async def work(store: Store) -> None:
        store.tree.create(ROOT, b"d", stat.S_IFDIR | 0o755, 0, 0)
        async with upload.begin(store, 0o600, 0, 0) as incoming:
            await incoming.write(b"x")
            await incoming.finish()
            with pytest.raises(FsError) as failed:
                incoming.place(ROOT, b"d", None)
            assert failed.value.errno == errno.EISDIR

    in_store(path, work)
    assert_sound(path)


def test_many_at_once_wait_for_room_in_memory(path: Path) -> None:
    """Bounded by mount.pending_bytes, whatever is sent."""
    highest = 0

    async def one(store: Store, number: int) -> None:
        nonlocal highest
        async with upload.begin(store, 0o600, 0, 0) as incoming:
            for _ in range(40):
                await incoming.write(os.urandom(256 << 10))
                highest = max(highest, store.contents.pending_bytes)
                await trio.lowlevel.checkpoint()
            await incoming.finish()
            incoming.place(ROOT, b"%d" % number, None)

    async def work(store: Store) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, store, number)
        assert store.counters.logical_bytes == 80 * MIB

    in_store(path, work)
    assert highest <= OPTIONS.pending_bytes + 8 * (256 << 10)


async def put_to_the_end(store: Store, name: bytes, data: bytes, piece: int) -> None:
    """As put(), and the last piece is said to be the last."""
    async with upload.begin(store, 0o600, 7, 8) as incoming:
        for start in range(0, len(data), piece):
            end = start + piece
            await incoming.write(data[start:end], last=end >= len(data))
        await incoming.finish()
        gone = incoming.place(ROOT, name, None)
        if gone is not None:
            store.nameless.forget(gone)
        await store.commit()


async def content(store: Store, name: bytes) -> bytes:
    ino = store.tree.lookup(ROOT, name)
    assert ino is not None
    return await store.contents.read(ino, 0, store.contents.attr(ino).size)


def test_who_says_which_piece_is_the_last_gets_the_same_recipe(path: Path) -> None:
    async def work(store: Store) -> None:
        for number, size in enumerate((1, 64 << 10, MIB - 1, MIB, MIB + 1, 5 * MIB, 9 * MIB)):
            data = os.urandom(size)
            for name in (b"a", b"b"):
                # A stream that was hashed aside finds its digests later.
                if name == b"a":
                    await put_to_the_end(store, b"a%d" % number, data, 200_000)
                else:
                    await put(store, b"b%d" % number, data)
                assert await content(store, b"%b%d" % (name, number)) == data
            await store.hasher.catch_up()
            blobs = set()
            for name in (b"a%d" % number, b"b%d" % number):
                ino = store.tree.lookup(ROOT, name)
                assert ino is not None
                blobs.add(store.tree.inodes.get(ino).blob)
            assert len(blobs) == 1

    in_store(path, work)
    assert_sound(path)


def test_a_batch_that_ends_with_the_content_makes_one_trip_to_a_worker(path: Path) -> None:
    async def work(store: Store) -> None:
        trips = 0
        submit = store.workers.submit

        def counted(*given: object) -> None:
            nonlocal trips
            trips += 1
            submit(*given)  # type: ignore[arg-type]

        store.workers.submit = counted  # type: ignore[assignment,method-assign]
        for size in (1, 64 << 10, 100_000, MIB - 1, MIB, MIB + 1):
            trips = 0
            await put_to_the_end(store, b"x", os.urandom(size), 1 << 30)
            assert trips == 1, size

    in_store(path, work)


@pytest.mark.parametrize("call", ["pwrite_all", "sync_data"])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("size", [40_000, MIB + 70_000, 7 * MIB])
def test_a_disk_that_fails_once(tmp_path: Path, call: str, at: int, size: int) -> None:
    """Whatever fails, the upload is there whole or says that it is not; the next one works."""
    create(tmp_path / "store", PARAMS)
    disk = FaultyDisk([Fault(at, errno.ENOSPC if call == "pwrite_all" else errno.EIO, call)])
    first, second = os.urandom(size), os.urandom(size)

    async def main() -> None:
        async with open_store(tmp_path / "store", OPTIONS, disk=disk) as store:
            with contextlib.suppress(CafsError):
                await put_to_the_end(store, b"x", first, 300_000)
                assert await content(store, b"x") == first
            disk.heal()
            store.space.look()
            await put_to_the_end(store, b"y", second, 300_000)
            assert await content(store, b"y") == second
            await store.sync_all()

    trio.run(main)
    assert_sound(tmp_path / "store")
