"""Readers of archives that were taken apart who take their time: they hold up nobody else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from cafs.archive_options import ArchiveOptions
from cafs.archives import archives, rebuilds, run
from cafs.index import layout
from cafs.store import Store
from cafs.types import BlobNo, Ino
from tests.unit.archived import age, blob_of, content, gzipped, opened, put, tar
from tests.unit.small_store import noise
from tests.unit.test_ageing import delete
from tests.unit.test_archives import children

pytestmark = pytest.mark.timeout(120)
SIZE = 4_000_000
NO_CACHE = ArchiveOptions(cache_size=0)


def archive(seed: int) -> bytes:
    """One that takes several steps."""
    return gzipped(tar({"noise": noise(seed, SIZE)}), "-1")


ARCHIVES = [archive(seed) for seed in range(4)]


def with_aged(
    path: Path,
    work: Callable[[Store, list[Ino]], Awaitable[None]],
    options: ArchiveOptions | None = None,
) -> None:
    """Do something in a store with the archives, all of them taken apart."""

    async def main() -> None:
        async with opened(path / "store", options) as store:
            files = [await put(store, b"%d" % n, data) for n, data in enumerate(ARCHIVES)]
            for file in files:
                await age(store, file)
            await work(store, files)

    trio.run(main)


@pytest.mark.parametrize("options", [None, NO_CACHE], ids=["cache", "no cache"])
def test_who_reads_slowly_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: ArchiveOptions | None
) -> None:
    monkeypatch.setattr(rebuilds, "ENGINES_MAX", 2)

    async def read_slowly(store: Store, file: Ino, data: bytes) -> None:
        at = 0
        while True:
            assert await store.contents.read(file, at, at + 100) == data[at : at + 100]
            at += 100
            # Never so long that it could be taken for one who has gone away.
            await trio.sleep(0.4)

    async def work(store: Store, files: list[Ino]) -> None:
        async with trio.open_nursery() as nursery:
            for file, data in zip(files[:2], ARCHIVES, strict=False):
                nursery.start_soon(read_slowly, store, file, data)
            await store.contents.read(files[1], 0, 100)
            with trio.fail_after(30):
                for file, data in zip(files[2:], ARCHIVES[2:], strict=True):
                    assert await content(store, file, 64 << 10) == data
            nursery.cancel_scope.cancel()
        assert store.archives.rebuilds.failed == 0

    with_aged(tmp_path, work, options)


def test_what_is_read_slowly_is_made_to_its_end_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SLOW_S", 0.0)

    async def work(store: Store, files: list[Ino]) -> None:
        idle = children()
        for at in (0, 100):
            for file in files:
                await store.contents.read(file, at, at + 100)
        with trio.fail_after(30):
            while store.archives.cache.count < len(files):
                await trio.sleep(0.01)
        assert store.archives.rebuilds.under_way == 0
        assert children() == idle
        begun = store.archives.rebuilds.begun
        for file, data in zip(files, ARCHIVES, strict=True):
            assert await content(store, file) == data
        assert store.archives.rebuilds.begun == begun == len(files)

    with_aged(tmp_path, work)


def test_who_looks_at_the_first_bytes_alone_has_nothing_made(tmp_path: Path) -> None:
    async def work(store: Store, files: list[Ino]) -> None:
        await store.contents.read(files[0], 0, 100)
        with trio.move_on_after(0.5):
            await store.archives.rebuilds.fill()
        (only,) = store.archives.rebuilds._runs
        assert not only.complete

    with_aged(tmp_path, work)


def test_one_whose_engine_was_taken_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilds, "ENGINES_MAX", 1)
    monkeypatch.setattr(rebuilds, "GIVES_WAY_S", 0.001)
    monkeypatch.setattr(rebuilds, "KEPT_MIN", 1)

    async def work(store: Store, files: list[Ino]) -> None:
        idle = children()
        got = [b""] * len(files)
        while any(len(some) < len(data) for some, data in zip(got, ARCHIVES, strict=True)):
            for number, file in enumerate(files):
                at = len(got[number])
                got[number] += await store.contents.read(file, at, at + 700_000)
                assert len(children() - idle) <= 1
        assert got == ARCHIVES
        assert store.archives.rebuilds.begun == len(files)
        assert store.archives.rebuilds.under_way == 0

    with_aged(tmp_path, work)


def test_those_without_an_engine_are_not_kept_in_any_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilds, "RUNS_MAX", 2)

    async def work(store: Store, files: list[Ino]) -> None:
        for file in files:
            await store.contents.read(file, 0, 100)
        assert store.archives.rebuilds.under_way == 2
        for file, data in zip(files, ARCHIVES, strict=True):
            assert await content(store, file) == data

    with_aged(tmp_path, work)


def test_one_that_is_deleted_while_it_is_made_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SLOW_S", 0.0)

    async def work(store: Store, files: list[Ino]) -> None:
        made = store.archives.rebuilds
        # Two reads: its reader is a slow one, so it is made to its end without him.
        for at in (0, 100):
            await store.contents.read(files[0], at, at + 100)
        (only,) = made._runs
        async with only.lock:
            blob = only.blob
            await delete(store, b"0")
            assert store.overlay.get(layout.BLOBS, layout.u48(blob)) is None
            # As if its engine had been taken meanwhile: what it needs is looked up anew.
            await made._stop(only)
            assert not only.complete
        with trio.fail_after(30):
            while made.under_way:
                await trio.sleep(0.01)
        assert only.failed is not None
        assert made.failed == 0

    with_aged(tmp_path, work)


def test_a_long_thaw_keeps_nobody_from_being_looked_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LOOK_S", 0.01)
    looked: list[bool] = []
    thawing = trio.Event()
    right = rebuilds.Rebuilds.look_after

    async def look_after(self: rebuilds.Rebuilds) -> None:
        looked.append(thawing.is_set())
        await right(self)

    async def thaw(_self: archives.Archives, _blob: BlobNo) -> bool:
        thawing.set()
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(rebuilds.Rebuilds, "look_after", look_after)
    monkeypatch.setattr(archives.Archives, "thaw", thaw)

    async def work(store: Store, files: list[Ino]) -> None:
        times = store.archives.options.thaw_after
        store.archives.uses.read(blob_of(store, files[0]), 0, times)
        with trio.fail_after(30):
            while looked.count(True) < 3:
                await trio.sleep(0.01)

    with_aged(tmp_path, work)
