"""Taking blobs apart and thawing them: exchanged recipes, counted references, the sweep."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cafs.blobs import aged as aged_blobs
from cafs.blobs import recipe
from cafs.errors import CafsError, IndexDamagedError
from cafs.index import layout
from cafs.newstore import create
from cafs.operate.compact import Compactor
from cafs.operate.give_back import sweep_now
from cafs.operate.index_copy import IndexCopier
from cafs.operate.look import verify
from cafs.operate.rebuild import rebuild
from cafs.operate.sweep import Sweeper
from cafs.store import Store, open_store
from cafs.types import NO_BLOB, ROOT, BlobNo, ChunkNo, Ino
from cafs.view import View
from tests.model.audit import audit
from tests.model.storethread import StoreThread
from tests.unit import aged_store
from tests.unit.aged_store import Pair
from tests.unit.small_store import OPTIONS, PARAMS, untold, write

OWNER = Ino(99)
CONTENT = aged_store.noise(40, 3_000_000)
FLAGS = layout.BLOB_AGED | layout.BLOB_INNER | layout.BLOB_LEFT


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("aged") / "store"
    create(path, PARAMS)
    return path


@pytest.fixture
def served(path: Path) -> Iterator[StoreThread]:
    """A store in which whatever a test made is dead when it is over, and swept."""
    thread = StoreThread(path)
    yield thread

    async def empty(store: Store) -> None:
        await store.commit()
        for key, value in list(store.overlay.scan(layout.BLOBS, b"", b"")):
            record = layout.unpack_blob(value)
            if record.refs and not record.flags & layout.BLOB_INNER:
                for _ in range(record.refs):
                    store.blobs.unref(BlobNo(layout.from_u48(key)))
        await Sweeper(store).once()
        await store.commit()
        left = [layout.from_u48(key) for key, _ in store.overlay.scan(layout.BLOBS, b"", b"")]
        assert left == []
        assert list(store.overlay.scan(layout.CHUNKS, b"", b"")) == []
        assert list(store.overlay.scan(layout.RECIPES, b"", b"")) == []
        counters = store.counters
        assert (counters.blobs, counters.blob_bytes, counters.chunks) == (0, 0, 0)

    try:
        thread.run(empty)
        thread.close()
    finally:
        thread.crash()
    assert audit(path) == []


async def refs_of_chunks(store: Store) -> dict[int, int]:
    await store.commit()
    return {
        layout.from_u48(key): layout.unpack_chunk(value).refs
        for key, value in store.overlay.scan(layout.CHUNKS, b"", b"")
    }


def counted(store: Store, *blobs: BlobNo) -> dict[int, int]:
    """How often the recipes of some blobs name each chunk."""
    times: dict[int, int] = {}
    for blob in blobs:
        for _, part in store.blobs.parts(blob, 0, store.blobs.get(blob).size):
            for number in recipe.chunk_refs([part]):
                times[number] = times.get(number, 0) + 1
    return times


async def swept(store: Store) -> None:
    await Sweeper(store).once()


async def content(store: Store, number: BlobNo) -> bytes:
    return bytes(await store.reader.read(number, 0, store.blobs.get(number).size))


def test_a_blob_is_aged_and_thawed(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        number, data = await aged_store.plain(store, 1)
        store.blobs.ref(number)
        before = store.counters.blobs, store.counters.blob_bytes
        record = store.blobs.get(number)
        pair = await aged_store.age(store, number, data, 10)
        outer, inner = store.blobs.get(number), store.blobs.get(pair.inner)
        assert outer._replace(parts=b"", flags=0, mate=NO_BLOB) == record._replace(
            parts=b"", flags=0
        )
        assert (outer.flags & FLAGS, outer.mate) == (layout.BLOB_AGED, pair.inner)
        assert (inner.flags & FLAGS, inner.mate) == (layout.BLOB_INNER, number)
        assert (inner.refs, inner.size, inner.sha1) == (1, len(pair.inflated), bytes(20))
        assert inner.sha256 == aged_store.digests(pair.inflated).sha256
        assert store.blobs.by_digest.find(inner.sha256) == NO_BLOB
        assert (store.counters.blobs, store.counters.blob_bytes) == before
        await store.commit()
        assert store.blobs.by_digest.find(inner.sha256) == NO_BLOB
        assert await content(store, pair.inner) == pair.inflated
        await swept(store)
        assert await refs_of_chunks(store) == counted(store, number, pair.inner)

        assert store.blobs.aged.thaw(number, await aged_store.stored(store, data))
        assert store.blobs.get(number)._replace(parts=b"", flags=0) == record._replace(
            parts=b"", flags=0
        )
        assert not store.blobs.get(number).flags & FLAGS
        assert store.blobs.get(pair.inner).refs == 0
        assert await content(store, number) == data
        await swept(store)
        assert await refs_of_chunks(store) == counted(store, number)
        with pytest.raises(IndexDamagedError):
            store.blobs.get(pair.inner)

    served.run(play)


@pytest.mark.parametrize("length", [40, 2000, 3_000_000])
def test_recipes_of_any_length_are_exchanged(served: StoreThread, length: int) -> None:
    async def play(store: Store) -> None:
        pair = await aged_store.aged(store, 2, length)
        parts = [part for _, part in store.blobs.parts(pair.outer, 0, length)]
        assert parts == aged_store.made_parts(pair.content, len(pair.inflated))
        rows = store.blobs.rows.first(pair.outer)
        assert bool(rows) == bool(store.blobs.get(pair.outer).flags & layout.BLOB_ROWS)
        assert all(len(row) <= layout.ROW_MAX for _, row in rows)
        if length == 40:
            assert not rows, "a short recipe lies in the record"
        store.blobs.aged.thaw(pair.outer, await aged_store.stored(store, pair.content))
        assert await content(store, pair.outer) == pair.content

    served.run(play)


def test_a_recipe_in_the_making_grows_over_many_commits(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        number, data = await aged_store.plain(store, 3, 2_000_000)
        store.blobs.ref(number)
        aged = store.blobs.aged
        aged_store.record_engine(store)
        inflated = aged_store.noise(4, 1_500_000)
        inner, outer = aged.begin(), aged.begin()
        parts = await aged_store.stored(store, inflated)
        for at in range(0, len(parts), 128):
            aged.extend(inner, parts[at : at + 128])
            await store.commit()
            await swept(store)
        aged.extend(outer, aged_store.made_parts(data, len(inflated)))
        assert aged.swap(number, outer, inner, aged_store.digests(inflated).sha256)
        assert await content(store, inner) == inflated
        await swept(store)
        assert await refs_of_chunks(store) == counted(store, number, inner)

    served.run(play)


def test_what_is_given_up_is_swept(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        aged = store.blobs.aged
        drafted = aged.begin()
        aged.extend(drafted, await aged_store.stored(store, aged_store.noise(5, 30_000)))
        await swept(store)
        assert store.blobs.get(drafted).size == 30_000, "it is held"
        aged.drop(drafted)
        await swept(store)
        assert await refs_of_chunks(store) == {}

    served.run(play)


def test_only_a_plain_hashed_blob_in_use_is_taken_apart(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        pair = await aged_store.aged(store, 6)
        dead, _ = await aged_store.plain(store, 7)
        store.blobs.ref(dead)
        store.blobs.unref(dead)
        writing = store.blobs.begin(OWNER)
        store.blobs.ref(writing)
        for number in (pair.outer, pair.inner, dead, writing, BlobNo(1 << 40)):
            assert not store.blobs.aged.may_swap(number)
            parts = await aged_store.stored(store, aged_store.noise(8, 50_000))
            made = aged_store.made_parts(b"x" * 60, 5)
            assert not aged_store.swap(store, number, made, parts, bytes(32))
        assert not store.blobs.aged.thaw(dead, [recipe.literal(b"x")])
        await swept(store)
        assert await refs_of_chunks(store) == counted(store, pair.outer, pair.inner)

    served.run(play)


def test_a_recipe_of_another_size_is_refused(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        number, data = await aged_store.plain(store, 9)
        store.blobs.ref(number)
        with pytest.raises(IndexDamagedError):
            aged_store.swap(store, number, aged_store.made_parts(data[1:], 1), [], bytes(32))
        pair = await aged_store.age(store, number, data, 20)
        with pytest.raises(IndexDamagedError):
            store.blobs.aged.thaw(pair.outer, [recipe.literal(b"short")])
        assert store.blobs.get(number).mate == pair.inner

    served.run(play)


def test_holes_stay_what_they_are(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        data = bytes(8192) + b"x" * 60
        parts = [recipe.hole(8192), recipe.literal(b"x" * 60)]
        number = store.blobs.adopt(parts, len(data), aged_store.digests(data))
        store.blobs.ref(number)
        aged_store.record_engine(store)
        how = recipe.Made(1, 1, 6, 0, 9, 0)
        made = [recipe.made_part(len(data), how)]
        inner = [recipe.literal(b"inflated!")]
        assert not aged_store.swap(store, number, made, inner, bytes(32))
        assert store.blobs.hole_bytes(number) == 8192
        made = [recipe.hole(8192), recipe.made_part(60, how)]
        assert aged_store.swap(store, number, made, inner, bytes(32))
        assert store.blobs.hole_bytes(number) == 8192
        assert not store.blobs.aged.thaw(
            number, [recipe.literal(data[:4096]), recipe.literal(data[4096:])]
        )
        assert store.blobs.aged.thaw(number, parts)
        assert (store.blobs.hole_bytes(number), await content(store, number)) == (8192, data)

    served.run(play)


def test_the_same_content_written_again_thaws(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        pair = await aged_store.aged(store, 11)
        parts = await aged_store.stored(store, pair.content)
        assert store.blobs.adopt(parts, 50_000, aged_store.digests(pair.content)) == pair.outer
        assert not store.blobs.get(pair.outer).flags & layout.BLOB_AGED
        assert await content(store, pair.outer) == pair.content
        await swept(store)
        assert await refs_of_chunks(store) == counted(store, pair.outer)

        # As a file that was written in pieces and gets its digests at the end.
        pair = await aged_store.age(store, pair.outer, pair.content, 12)
        number = store.blobs.begin(OWNER)
        store.blobs.ref(number)
        parts = await aged_store.stored(store, pair.content)
        store.blobs.splice(number, 0, 0, parts, 50_000)
        assert store.blobs.hashed(number, aged_store.digests(pair.content)) == pair.outer
        store.blobs.unref(number)
        assert await content(store, pair.outer) == pair.content
        await swept(store)
        assert await refs_of_chunks(store) == counted(store, pair.outer)

    served.run(play)


def test_an_aged_blob_goes_with_its_inner_one(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        pair = await aged_store.aged(store, 13, 3_000_000)
        store.blobs.unref(pair.outer)
        steps = 0
        while not store.blobs.sweep(pair.outer, 1):
            steps += 1
            outer = store.blobs.get(pair.outer)
            assert outer.mate == pair.inner, "until the last step each names the other"
            assert store.blobs.get(pair.inner).refs == 1
            await store.commit()
        assert steps > 1
        assert store.blobs.get(pair.inner).refs == 0
        assert store.overlay.get(layout.DEAD, layout.dead_key(b"b", pair.inner)) == b""
        while not store.blobs.sweep(pair.inner, 1):
            await store.commit()
        await swept(store)
        assert await refs_of_chunks(store) == {}

    served.run(play)


def test_who_needs_it_again_has_an_aged_blob_whole(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        pair = await aged_store.aged(store, 14)
        store.blobs.unref(pair.outer)
        await store.commit()
        store.blobs.ref(store.blobs.by_digest.find(aged_store.digests(pair.content).sha256))
        await swept(store)
        assert store.blobs.get(pair.outer).mate == pair.inner
        assert await content(store, pair.inner) == pair.inflated

    served.run(play)


def test_who_reads_an_inner_blob_holds_it(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        pair = await aged_store.aged(store, 15)
        store.blobs.aged.hold(pair.inner)
        store.blobs.unref(pair.outer)
        await swept(store)
        assert await content(store, pair.inner) == pair.inflated
        store.blobs.aged.let_go(pair.inner)
        await swept(store)
        with pytest.raises(IndexDamagedError):
            store.blobs.get(pair.inner)

    served.run(play)


def test_what_is_edited_is_plain(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        pair = await aged_store.aged(store, 16)
        with pytest.raises(CafsError, match="thawed first"):
            store.blobs.fork(pair.outer, OWNER)
        number = store.blobs.begin(OWNER)
        store.blobs.ref(number)
        with pytest.raises(CafsError, match="thawed first"):
            store.blobs.fork_more(number, pair.outer, 10)

    served.run(play)


def test_what_is_left_is_marked(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        number, data = await aged_store.plain(store, 17)
        store.blobs.ref(number)
        store.blobs.aged.leave(number)
        assert store.blobs.get(number).flags & FLAGS == layout.BLOB_LEFT
        assert await content(store, number) == data
        store.blobs.aged.leave(number, left=False)
        assert store.blobs.get(number).flags & FLAGS == 0

    served.run(play)


def test_an_aged_blob_is_read_by_who_can_rebuild_it(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        pair = await aged_store.aged(store, 18)

        async def rebuild(number: BlobNo, start: int, end: int) -> bytes:
            assert number == pair.outer
            return pair.content[start:end]

        usual, store.reader.aged = store.reader.aged, None
        with pytest.raises(CafsError, match="nothing here can rebuild it"):
            await store.reader.read(pair.outer, 0, 10)
        store.reader.aged = rebuild
        assert await store.reader.read(pair.outer, 5, 1 << 30) == pair.content[5:]
        assert await store.reader.read(pair.outer, 50_000, 50_001) == b""
        store.reader.aged = usual
        with pytest.raises(IndexDamagedError, match="not aged"):
            await store.reader.read_parts(store.blobs.parts(pair.outer, 0, 50_000), 0, 50_000)

    served.run(play)


@pytest.mark.parametrize("step", [1, 33, 700, 5000, 100_000])
def test_slices_are_read_as_what_they_are(served: StoreThread, step: int) -> None:
    async def play(store: Store) -> None:
        pair: Pair = await aged_store.aged(store, 19)
        whole = len(pair.inflated)
        stop = whole if step > 100 else 3000
        for start in range(0, stop, step):
            end = min(start + step, whole)
            assert await store.reader.read(pair.inner, start, end) == pair.inflated[start:end]
        store.reader.forget()
        assert await content(store, pair.inner) == pair.inflated

    served.run(play)


def test_a_large_read_reads_a_chunk_of_slices_once(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        headers, files = aged_store.noise(30, 8000), aged_store.noise(31, 600_000)
        parts, inflated = await aged_store.gathered(store, headers, files)
        slices = sum(part.kind == recipe.SLICE for part in parts)
        assert slices > 50
        number = store.blobs.adopt(parts, len(inflated), aged_store.digests(inflated))
        store.blobs.ref(number)
        await store.commit()
        store.reader.forget()
        before = store.reader.fetched
        assert await content(store, number) == inflated
        assert store.reader.fetched - before == len(set(recipe.chunk_refs(parts)))

    served.run(play)


def test_a_slice_beyond_its_chunk_is_damage(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        (part,) = await aged_store.stored(store, aged_store.noise(32, 1000))
        wrong = recipe.slice_of(ChunkNo(part.ref), 999, 2)
        number = store.blobs.adopt([wrong], 2, aged_store.digests(b"??"))
        store.blobs.ref(number)
        right = recipe.slice_of(ChunkNo(part.ref), 0, 1)
        parts = [part for _, part in store.blobs.parts(number, 0, 2)]
        for _ in ("from the pack", "from the cache"):
            with pytest.raises(IndexDamagedError, match="ends behind the end of chunk"):
                await store.reader.read_parts([(0, parts[0])], 0, 2)
            await store.reader.read_parts([(0, right)], 0, 1)

    served.run(play)


@pytest.mark.parametrize("committed", ["nothing", "drafted", "swapped", "thawed", "half swept"])
def test_a_crash_leaves_nothing_behind(tmp_path: Path, committed: str) -> None:
    path = tmp_path / "store"
    create(path, PARAMS)
    thread = StoreThread(path)

    async def play(store: Store) -> None:
        ino = await write(store, ROOT, b"file", CONTENT)
        number = await aged_store.hashed(store, ino)
        data = CONTENT
        aged_store.record_engine(store)
        aged = store.blobs.aged
        inner, outer = aged.begin(), aged.begin()
        parts, inflated = await aged_store.gathered(
            store, aged_store.noise(41, 2000), aged_store.noise(42, 500_000)
        )
        aged.extend(inner, parts)
        aged.extend(outer, aged_store.made_parts(data, len(inflated), 1000))
        if committed == "nothing":
            return
        await store.commit()
        assert aged.swap(number, outer, inner, aged_store.digests(inflated).sha256)
        if committed == "drafted":
            return
        await store.commit()
        assert aged.thaw(number, await aged_store.stored(store, data))
        if committed == "swapped":
            return
        await store.commit()
        if committed == "thawed":
            return
        assert not store.blobs.sweep(outer, 1)
        await store.commit()

    thread.run(play)
    thread.crash()
    assert audit(path) == []
    thread = StoreThread(path, OPTIONS)
    aged = committed == "swapped"

    async def after(store: Store) -> None:
        await swept(store)
        await store.commit()
        blobs = list(store.overlay.scan(layout.BLOBS, b"", b""))
        assert len(blobs) == 1 + aged
        ino = store.tree.lookup(ROOT, b"file")
        assert ino is not None
        number = store.tree.inodes.get(ino).blob
        assert bool(store.blobs.get(number).flags & layout.BLOB_AGED) == aged
        if not aged:
            assert await content(store, number) == CONTENT

    thread.run(after)
    thread.close()
    assert audit(path) == []


@pytest.mark.parametrize("how", ["aged", "thawed", "written again"])
def test_a_lost_index_costs_nothing_that_was_stored_differently(tmp_path: Path, how: str) -> None:
    """The copy of the index is from before; what it names is there until there is a newer one."""
    path = tmp_path / "store"
    create(path, PARAMS)

    async def play() -> None:
        async with open_store(path, OPTIONS) as store:
            ino = await write(store, ROOT, b"file", CONTENT)
            number = await aged_store.hashed(store, ino)
            copier = IndexCopier(store)
            if how != "aged":
                pair = await aged_store.age(store, number, CONTENT, 50)
                await store.commit()
                await copier.once()
            else:
                await copier.once()
                pair = await aged_store.age(store, number, CONTENT, 50)
            parts = await aged_store.stored(store, CONTENT)
            if how == "thawed":
                assert store.blobs.aged.thaw(number, parts)
            elif how == "written again":
                store.blobs.adopt(parts, len(CONTENT), aged_store.digests(CONTENT))
            else:
                store.chunks.unpin(recipe.chunk_refs(parts))
            await swept(store)
            await Compactor(store).whole(0.0)
            await store.commit()
            assert store.blobs.aged.only_in_copy() != []
            if how != "aged":
                assert await content(store, pair.inner) == pair.inflated

    trio.run(play)
    shutil.rmtree(path / "index")
    assert rebuild(path, lambda _phase: None).lost_chunks == 0
    with View(path) as view:
        number = view.blobs.by_digest.find(aged_store.digests(CONTENT).sha256)
        if how == "aged":
            assert b"".join(view.content(number)) == CONTENT
        else:
            mate = view.blobs.get(number).mate
            assert verify(view, mate).damages == []
    assert audit(path) == []


def test_what_only_the_copy_names_is_kept_over_a_restart_among_much_that_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aged_blobs, "_RESUMED_MAX", 3)
    path = tmp_path / "store"
    create(path, PARAMS)

    async def first() -> list[BlobNo]:
        async with open_store(path, OPTIONS) as store:
            for seed in range(5):
                number, _ = await aged_store.plain(store, seed, 5000)
                store.blobs.ref(number)
                store.blobs.unref(number)
            ino = await write(store, ROOT, b"file", CONTENT)
            number = await aged_store.hashed(store, ino)
            await IndexCopier(store).once()
            await aged_store.age(store, number, CONTENT, 60)
            return store.blobs.aged.only_in_copy()

    async def second() -> list[BlobNo]:
        async with open_store(path, OPTIONS) as store:
            IndexCopier(store)
            return store.blobs.aged.only_in_copy()

    kept = trio.run(first)
    assert kept
    assert trio.run(second) == kept


def test_a_newer_copy_gives_the_old_recipe_to_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "store"
    create(path, PARAMS)

    async def first() -> None:
        async with open_store(path, OPTIONS) as store:
            ino = await write(store, ROOT, b"file", CONTENT)
            number = await aged_store.hashed(store, ino)
            copier = IndexCopier(store)
            await copier.once()
            await aged_store.age(store, number, CONTENT, 60)
            await swept(store)
            assert store.blobs.aged.only_in_copy() != []

    async def second() -> None:
        async with open_store(path, OPTIONS) as store:
            copier = IndexCopier(store)
            await swept(store)
            await store.commit()
            (kept,) = store.blobs.aged.only_in_copy()
            assert await content(store, kept) == CONTENT, "also over a restart"
            await sweep_now(store, Sweeper(store), copier, untold)
            assert store.blobs.aged.only_in_copy() == []
            with pytest.raises(IndexDamagedError):
                store.blobs.get(kept)

    trio.run(first)
    trio.run(second)
    assert audit(path) == []
