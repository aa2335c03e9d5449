"""Space of uploads that failed comes back at once; what anybody may be reading keeps its grace."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cafs import upload
from cafs.blobs.sidecar import read_sidecar
from cafs.config import StoreParams
from cafs.errors import DiskFullError
from cafs.index import layout
from cafs.newstore import create
from cafs.operate import compact
from cafs.operate.check import Check
from cafs.operate.compact import Compactor
from cafs.operate.sweep import Sweeper
from cafs.store import Store
from cafs.types import ROOT, PackNo
from cafs.view import View
from tests.model.storethread import QUIET, StoreThread
from tests.unit.small_store import assert_sound, in_store, noise, write

PARAMS = StoreParams(chunk_min=1024, chunk_avg=4096, chunk_max=8192, pack_size=1 << 20)
GRACE_S = 3600.0
KEPT = noise(1, 100_000)
LARGE = noise(2, 5_000_000)
MORE = noise(3, 300_000)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(compact, "WORTH_CUTTING", 4096)
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


def packs_bytes(path: Path) -> int:
    """What the packs take, however large their files seem."""
    return sum(each.stat().st_blocks * 512 for each in (path / "packs").glob("*.pack"))


async def fail_to_upload(
    store: Store, data: bytes, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Most of an upload, committed as it comes, that its client gives up."""
    with pytest.raises(ConnectionError):
        async with upload.begin(store, 0o600, 0, 0) as incoming:
            for start in range(0, len(data), 1 << 20):
                await incoming.write(data[start : start + (1 << 20)])
                await store.contents.settle_all()
                await store.commit()
            if meanwhile is not None:
                await meanwhile()
            raise ConnectionError("the client went away")


async def give_back(store: Store) -> None:
    """What the daemon does by itself within seconds, with a grace of an hour."""
    store.nameless.look_again()
    await Sweeper(store).once()
    await store.commit()
    compactor = Compactor(store)
    await compactor.give_tails_back()
    await compactor.once(0.0, GRACE_S)


async def read(store: Store, name: bytes) -> bytes:
    ino = store.tree.lookup(ROOT, name)
    assert ino is not None
    return await store.contents.read(ino, 0, 1 << 30)


def assert_sidecars_say_what_the_index_says(store: Store) -> None:
    indexed: dict[PackNo, set[int]] = {}
    for _, value in store.overlay.scan(layout.CHUNKS, b"", b""):
        extent = layout.unpack_chunk(value).extent
        indexed.setdefault(extent.pack, set()).add(extent.offset)
    for pack, offsets in indexed.items():
        found = {record.offset for record in read_sidecar(store.packs.sidecar_path(pack))}
        assert offsets <= found
        size = store.packs.size_of(pack)
        assert all(offset < size for offset in found)
        assert os.path.getsize(store.packs.pack_path(pack)) == size


def test_an_upload_that_failed_gives_all_back_at_once(path: Path) -> None:
    async def work(store: Store) -> None:
        await write(store, ROOT, b"kept", KEPT)
        await store.sync_all()
        before = packs_bytes(path)
        await fail_to_upload(store, LARGE)
        assert packs_bytes(path) > before + 4_000_000
        await give_back(store)
        # The pack that was begun before is full and partly alive: compaction's business.
        assert packs_bytes(path) <= before + PARAMS.pack_size
        assert store.counters.chunks == sum(1 for _ in store.overlay.scan(layout.CHUNKS, b"", b""))
        await write(store, ROOT, b"more", MORE)
        await store.sync_all()
        assert_sidecars_say_what_the_index_says(store)
        assert await read(store, b"more") == MORE

    in_store(path, work, QUIET)
    assert_sound(path)

    async def look(store: Store) -> None:
        assert await read(store, b"kept") == KEPT
        assert await read(store, b"more") == MORE

    in_store(path, look, QUIET)


def test_a_tail_is_cut_off_and_written_again(path: Path) -> None:
    async def work(store: Store) -> None:
        await write(store, ROOT, b"kept", KEPT)
        await store.sync_all()
        for _ in range(5):
            await fail_to_upload(store, LARGE[:600_000])
            store.nameless.look_again()
            await Sweeper(store).once()
            compactor = Compactor(store)
            assert await compactor.give_tails_back() > 500_000
            assert await compactor.give_tails_back() == 0
        assert len(list((path / "packs").glob("*.pack"))) == 1
        await write(store, ROOT, b"more", MORE)
        await store.sync_all()
        assert_sidecars_say_what_the_index_says(store)
        assert await read(store, b"more") == MORE

    in_store(path, work, QUIET)
    assert_sound(path)


def test_what_got_a_name_keeps_its_grace(path: Path) -> None:
    async def work(store: Store) -> None:
        async with upload.begin(store, 0o600, 0, 0) as incoming:
            await incoming.write(LARGE)
            await incoming.finish()
            incoming.place(ROOT, b"placed", None)
        await store.sync_all()
        ino, last = store.tree.unlink(ROOT, b"placed")
        assert last
        store.nameless.forget(ino)
        before = packs_bytes(path)
        await give_back(store)
        assert store.counters.chunks == 0
        assert packs_bytes(path) == before

    in_store(path, work, QUIET)


@pytest.mark.parametrize("placed", [True, False])
def test_content_that_others_took_over_keeps_its_grace(path: Path, placed: bool) -> None:
    """A file with the same bytes shares the upload's chunks: it may be on its way to somebody."""

    async def work(store: Store) -> None:
        async def take_over() -> None:
            if placed:
                async with upload.begin(store, 0o600, 0, 0) as incoming:
                    await incoming.write(LARGE)
                    await incoming.finish()
                    incoming.place(ROOT, b"same", None)
            else:
                await write(store, ROOT, b"same", LARGE)
            await store.sync_all()

        await fail_to_upload(store, LARGE, take_over)
        await give_back(store)
        assert await read(store, b"same") == LARGE
        ino, _ = store.tree.unlink(ROOT, b"same")
        store.nameless.forget(ino)
        before = packs_bytes(path)
        await give_back(store)
        assert store.counters.chunks == 0
        assert packs_bytes(path) == before

    in_store(path, work, QUIET)
    assert_sound(path)


def test_what_is_just_being_stored_is_not_cut_off(path: Path) -> None:
    async def work(store: Store) -> None:
        await fail_to_upload(store, LARGE[:500_000])
        store.nameless.look_again()
        await Sweeper(store).once()
        async with upload.begin(store, 0o600, 0, 0) as incoming:
            await incoming.write(MORE)
            await store.contents.settle(incoming.ino)
            assert store.chunks.void_tail(PackNo(1)) is None
            await incoming.finish()
            incoming.place(ROOT, b"more", None)
        await store.sync_all()
        tail = store.chunks.void_tail(PackNo(1))
        assert tail is not None
        assert tail[0] == tail[1]
        assert await read(store, b"more") == MORE

    in_store(path, work, QUIET)
    assert_sound(path)


@pytest.mark.parametrize("stop", ["before the commit", "before the file is cut"])
def test_a_crash_in_between_loses_nothing(path: Path, stop: str) -> None:
    thread = StoreThread(path)

    async def work(store: Store) -> None:
        await write(store, ROOT, b"kept", KEPT)
        await store.sync_all()
        await fail_to_upload(store, LARGE[:700_000])
        store.nameless.look_again()
        await Sweeper(store).once()
        await store.commit()
        tail = store.chunks.void_tail(PackNo(1))
        assert tail is not None
        assert store.chunks.cut_tail(PackNo(1), tail) > 600_000
        if stop == "before the commit":
            # Written over what the last commit still counts as a part of the pack.
            await write(store, ROOT, b"more", MORE)
        else:
            await store.commit()

    thread.run(work)
    thread.crash()
    assert_sound(path)

    async def look(store: Store) -> None:
        assert await read(store, b"kept") == KEPT
        await write(store, ROOT, b"again", MORE)
        await store.sync_all()
        assert await read(store, b"again") == MORE

    in_store(path, look, QUIET)
    assert_sound(path)


def test_a_file_is_not_cut_before_the_index_knows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(store: Store) -> None:
        await write(store, ROOT, b"kept", KEPT)
        await fail_to_upload(store, LARGE[:700_000])
        store.nameless.look_again()
        await Sweeper(store).once()
        await store.commit()
        compactor = Compactor(store)
        length = os.path.getsize(store.packs.pack_path(PackNo(1)))

        commit = store.commit
        commits: list[int] = []

        async def fail_the_second_time() -> None:
            commits.append(1)
            if len(commits) > 1:
                raise DiskFullError("no room for a commit")
            await commit()

        with monkeypatch.context() as broken:
            broken.setattr(store, "commit", fail_the_second_time)
            with pytest.raises(DiskFullError):
                await compactor.give_tails_back()
        assert os.path.getsize(store.packs.pack_path(PackNo(1))) == length
        assert await compactor.give_tails_back() == 0
        assert os.path.getsize(store.packs.pack_path(PackNo(1))) < 200_000

    in_store(path, work, QUIET)
    assert_sound(path)


RETRIED = LARGE[:700_000]


async def send(store: Store, name: bytes, data: bytes) -> None:
    async with upload.begin(store, 0o600, 0, 0) as incoming:
        await incoming.write(data)
        await incoming.finish()
        incoming.place(ROOT, name, None)
    await store.sync_all()


def crash_and_retry(path: Path, thread: StoreThread) -> None:
    """What a client does that got no answer; with an answer its bytes are safe."""
    thread.crash()

    async def retry(store: Store) -> None:
        await send(store, b"retried", RETRIED)
        assert await read(store, b"retried") == RETRIED

    in_store(path, retry, QUIET)
    assert_sound(path)


def test_nothing_is_cut_off_that_the_index_on_disk_still_names(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = StoreThread(path)

    async def work(store: Store) -> None:
        await write(store, ROOT, b"kept", KEPT)
        await store.sync_all()
        await fail_to_upload(store, RETRIED)
        store.nameless.look_again()
        await Sweeper(store).once()

        def refuse(_layer: object) -> None:
            raise DiskFullError("no room for a commit")

        monkeypatch.setattr(store._writer, "write", refuse)
        with pytest.raises(DiskFullError):
            await Compactor(store).give_tails_back()
        store.space.problem = None
        async with upload.begin(store, 0o600, 0, 0) as incoming:
            await incoming.write(MORE)
            await store.contents.settle(incoming.ino)
            store.chunks.write_back()

    thread.run(work)
    crash_and_retry(path, thread)


def test_what_came_while_the_index_was_written_is_not_cut_off(path: Path) -> None:
    """Stored and counted, in that very commit, and gone again before it was over."""
    thread = StoreThread(path)

    async def work(store: Store) -> None:
        await write(store, ROOT, b"kept", KEPT)
        await store.sync_all()
        await fail_to_upload(store, MORE)
        store.nameless.look_again()
        await Sweeper(store).once()
        commit = store.commit
        commits: list[int] = []

        async def commit_what_comes() -> None:
            if not commits:
                commits.append(1)
                await fail_to_upload(store, RETRIED)
                store.nameless.look_again()
                await Sweeper(store).once()
                return
            await commit()

        store.commit = commit_what_comes  # type: ignore[method-assign]
        assert await Compactor(store).give_tails_back() == 0
        assert commits
        # Else its bytes would be written over here.
        await write(store, ROOT, b"other", noise(4, 700_000))
        store.chunks.write_back()

    thread.run(work)
    crash_and_retry(path, thread)


def test_a_check_beside_it_is_not_misled(path: Path) -> None:
    """It has an older snapshot, in which the pack was longer than its file is now."""

    async def work(store: Store) -> None:
        await write(store, ROOT, b"kept", KEPT)
        await fail_to_upload(store, LARGE[:700_000])
        await give_back(store)

    in_store(path, work, QUIET)
    with View(path) as view:
        record = view.pack_table.get(PackNo(1))
        assert record is not None
        assert os.path.getsize(view.packs.pack_path(PackNo(1))) == record.size < 200_000
        view.pack_table._records[PackNo(1)] = record._replace(size=record.size + 600_000)
        assert not list(Check(view).findings())
        os.truncate(view.packs.pack_path(PackNo(1)), record.size - 1)
        assert {finding.kind for finding in Check(view).findings()} >= {"pack-file"}
