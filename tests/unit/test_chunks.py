"""Chunks are stored once, never swept while somebody is about to use them, and counted."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import xxhash

from cafs.blobs import codec, recipe
from cafs.blobs.pack import StoredChunk
from cafs.errors import CafsError, DiskFullError, IndexDamagedError
from cafs.index import layout
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ChunkNo, Extent
from tests.model.storethread import StoreThread
from tests.model.test_draft import SMALL


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def intern(
    store: Store, contents: Sequence[bytes], encoding: Callable[[], object] = list
) -> tuple[list[ChunkNo], list[bytes]]:
    """The chunks' numbers, and which of them had to be stored; *encoding* is called before."""
    stored: list[bytes] = []

    def encode(missing: list[int]) -> list[StoredChunk]:
        encoding()
        result = []
        for position in missing:
            data = contents[position]
            stored.append(data)
            checksum = xxhash.xxh3_64_intdigest(data)
            result.append(StoredChunk(digest(data), data, codec.RAW, len(data), checksum))
        return result

    return store.chunks.intern([digest(data) for data in contents], encode), stored


@pytest.fixture
def served(tmp_path: Path) -> Iterator[StoreThread]:
    create(tmp_path / "store", SMALL)
    thread = StoreThread(tmp_path / "store")
    yield thread
    thread.crash()


def test_the_same_bytes_are_stored_once(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        numbers, stored = intern(store, [b"one", b"two", b"one"])
        assert numbers[0] == numbers[2] != numbers[1]
        assert stored == [b"one", b"two"]
        again, stored = intern(store, [b"two", b"three"])
        assert again[0] == numbers[1]
        assert stored == [b"three"]
        store.chunks.count([*numbers, *again])
        await store.commit()
        later, stored = intern(store, [b"one"])
        assert later == [numbers[0]] and not stored
        store.chunks.unpin(later)
        assert store.chunks.get(numbers[0]).refs == 2
        assert store.chunks.get(numbers[1]).refs == 2
        assert not store.chunks._pins

    served.run(play)


def test_what_was_stored_and_not_used_leaves_no_record(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        numbers, _ = intern(store, [b"unused"])
        store.chunks.unpin(numbers)
        with pytest.raises(IndexDamagedError):
            store.chunks.get(numbers[0])
        again, stored = intern(store, [b"unused"])
        assert stored == [b"unused"], "its bytes were given up"
        store.chunks.count(again)
        assert store.counters.chunks == 1

    served.run(play)


def test_the_sweep_takes_only_what_nobody_holds(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        numbers, _ = intern(store, [b"held"])
        store.chunks.count(numbers)
        await store.commit()
        pinned, stored = intern(store, [b"held"])
        assert not stored
        store.chunks.uncount(numbers)
        assert not store.chunks.sweep(numbers[0], 1), "a worker is about to use it"
        store.chunks.count(pinned)
        assert not store.chunks.sweep(numbers[0], 1), "it is used again"
        store.chunks.uncount(numbers)
        assert store.chunks.sweep(numbers[0], 1)
        fresh, stored = intern(store, [b"held"])
        assert fresh != numbers and stored == [b"held"]
        store.chunks.unpin(fresh)
        assert store.counters.chunks == store.counters.stored_bytes == 0

    served.run(play)


def test_no_reference_is_taken_that_is_not_there(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        numbers, _ = intern(store, [b"once"])
        store.chunks.count(numbers)
        with pytest.raises(IndexDamagedError):
            store.chunks.uncount([numbers[0], numbers[0]])

    served.run(play)


def test_nothing_stays_pinned_when_the_disk_is_full(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        numbers, _ = intern(store, [b"known"])
        store.chunks.count(numbers)

        def full(missing: list[int]) -> list[StoredChunk]:
            raise DiskFullError("full")

        with pytest.raises(DiskFullError):
            store.chunks.intern([digest(b"known"), digest(b"unknown")], full)
        assert not store.chunks._pins

    served.run(play)


def test_workers_that_meet_store_a_chunk_once(served: StoreThread) -> None:
    """They encode at the same time, as the barrier proves; one of them is too late."""

    async def play(store: Store) -> None:
        barrier = threading.Barrier(4, timeout=30)
        found: list[list[ChunkNo]] = []

        def encode(missing: list[int]) -> list[StoredChunk]:
            barrier.wait()
            data = b"meeting"
            checksum = xxhash.xxh3_64_intdigest(data)
            return [StoredChunk(digest(data), data, codec.RAW, len(data), checksum)]

        def work() -> None:
            found.append(store.chunks.intern([digest(b"meeting")], encode))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({tuple(numbers) for numbers in found}) == 1
        for numbers in found:
            store.chunks.count(numbers)
        assert store.chunks.get(found[0][0]).refs == 4
        assert store.counters.chunks == 1

    served.run(play)


def test_a_chunk_that_was_stored_twice_is_found_in_both_places(
    served: StoreThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(store: Store) -> None:
        for _ in range(2):
            with monkeypatch.context() as forgetful:
                forgetful.setattr(store.chunks, "_take_committed", lambda _digests, _found: None)
                numbers, stored = intern(store, [b"one"])
            assert stored == [b"one"]
            store.chunks.count(numbers)
            await store.commit()
        scan = store.overlay.scan(layout.CHUNKS, b"", b"")
        extents = {key: layout.unpack_chunk(value).extent for key, value in scan}
        assert len(extents) == 2
        for key, extent in extents.items():
            number = ChunkNo(layout.from_u48(key))
            assert store.chunks.at(digest(b"one"), extent.pack, extent.offset) == (number, extent)
            assert store.chunks.at(digest(b"one"), extent.pack, extent.offset + 1) is None

    served.run(play)


class Gate:
    """Holds up who comes first, until open() or the end of the block."""

    def __init__(self) -> None:
        self.arrived, self._open = threading.Event(), threading.Event()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def open(self) -> None:
        self._open.set()

    def passes(self) -> None:
        if not self.arrived.is_set():
            self.arrived.set()
            assert self._open.wait(30)


class Worker(threading.Thread):
    """Interns in a thread of its own."""

    def __init__(
        self, store: Store, contents: Sequence[bytes], encoding: Callable[[], object] = list
    ) -> None:
        super().__init__(daemon=True)
        self._asked = store, contents, encoding
        self.numbers: list[ChunkNo] = []
        self.error: CafsError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.numbers, _ = intern(*self._asked)
        except CafsError as error:
            self.error = error

    def end(self) -> list[ChunkNo]:
        self.join(30)
        assert not self.is_alive()
        return self.numbers


def slow_append(
    store: Store, monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]
) -> list[bytes]:
    """Have appending call *before*; what was appended."""
    append, appended = store.packs.append, list[bytes]()

    def slow(pieces: Sequence[StoredChunk]) -> list[Extent]:
        before()
        appended.extend(bytes(piece.stored) for piece in pieces)
        return append(pieces)

    monkeypatch.setattr(store.packs, "append", slow)
    return appended


def test_nobody_waits_for_the_disk_while_another_appends(
    served: StoreThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(store: Store) -> None:
        chunks = store.chunks
        counted, _ = intern(store, [b"known"])
        given_up, _ = intern(store, [b"given up"])
        pinned, _ = intern(store, [b"pinned"])
        chunks.count(counted)
        chunks.unpin(given_up)
        (pack,) = store.packs.sizes()
        landing: list[object] = []

        def beside() -> None:
            again, _ = intern(store, [b"known"])
            chunks.count(again)
            chunks.unpin(pinned)
            chunks.heal(1)
            chunks.condemn(counted, damaged=False)
            assert not chunks.sweep(counted[0], 1)
            landing.extend([chunks.landing_packs(), chunks.void_tail(pack)])

        with Gate() as gate:
            slow_append(store, monkeypatch, gate.passes)
            worker = Worker(store, [b"new"])
            assert gate.arrived.wait(30)
            other = threading.Thread(target=beside, daemon=True)
            other.start()
            other.join(10)
            held_up = other.is_alive()
        assert not held_up
        # What is there already would be cut away, and now something comes behind it.
        assert landing == [{pack}, None]
        new = worker.end()
        assert chunks.landing_packs() == {pack}
        chunks.unpin(new)
        assert chunks.landing_packs() == set()
        tail = chunks.void_tail(pack)
        assert tail is not None and chunks.cut_tail(pack, tail) > 0

    served.run(play)


def test_who_wants_what_another_appends_waits_for_it_alone(
    served: StoreThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(store: Store) -> None:
        waits, wait = threading.Event(), store.chunks._stored.wait

        def waiting() -> None:
            waits.set()
            wait()

        monkeypatch.setattr(store.chunks._stored, "wait", waiting)
        with Gate() as gate:
            appended = slow_append(store, monkeypatch, gate.passes)
            one = Worker(store, [b"both", b"one"])
            assert gate.arrived.wait(30)
            two = Worker(store, [b"both", b"two"])
            assert waits.wait(30)
            assert appended == [b"two"], "its own is stored before it waits"
        assert one.end()[0] == two.end()[0]
        assert sorted(appended) == [b"both", b"one", b"two"]
        store.chunks.count([*one.numbers, *two.numbers])
        assert store.counters.chunks == 3
        assert not store.chunks._pins and not store.chunks._landing

    served.run(play)


def test_what_one_cannot_append_those_who_wait_do(
    served: StoreThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(store: Store) -> None:
        waits, wait, fails = threading.Event(), store.chunks._stored.wait, [DiskFullError("full")]

        def waiting() -> None:
            waits.set()
            wait()

        def failing() -> None:
            gate.passes()
            if fails:
                raise fails.pop()

        monkeypatch.setattr(store.chunks._stored, "wait", waiting)
        with Gate() as gate:
            appended = slow_append(store, monkeypatch, failing)
            one = Worker(store, [b"both"])
            assert gate.arrived.wait(30)
            two = Worker(store, [b"both"])
            assert waits.wait(30)
        assert not one.end() and isinstance(one.error, DiskFullError)
        assert two.end() and appended == [b"both"]
        store.chunks.unpin(two.numbers)
        assert not store.chunks._pins and not store.chunks._storing
        assert not store.chunks.landing_packs()

    served.run(play)


def test_many_workers_with_the_same_in_another_order_store_each_once(
    served: StoreThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(store: Store) -> None:
        appended = slow_append(store, monkeypatch, list)
        for turn in range(20):
            contents = [b"%d in turn %d" % (number, turn) for number in range(20)]
            barrier = threading.Barrier(4, timeout=30)
            workers = []
            for seed in range(4):
                some = random.Random(seed).sample(contents, 15)
                workers.append((some, Worker(store, some, barrier.wait)))
            found = dict[bytes, ChunkNo]()
            for some, worker in workers:
                for data, number in zip(some, worker.end(), strict=True):
                    assert found.setdefault(data, number) == number
                store.chunks.count(worker.numbers)
        assert len(appended) == len(set(appended)) == store.counters.chunks
        assert not store.chunks._pins

    served.run(play)


def test_what_is_stored_and_committed_while_another_encodes_it_is_found(
    served: StoreThread,
) -> None:
    async def play(store: Store) -> None:
        with Gate() as gate:
            late = Worker(store, [b"late"], gate.passes)
            assert gate.arrived.wait(30)
            numbers, _ = intern(store, [b"late"])
            store.chunks.count(numbers)
            await store.commit()
        assert late.end() == numbers
        store.chunks.count(late.numbers)
        assert store.counters.chunks == 1

    served.run(play)


def test_a_damaged_chunk_that_dies_is_there_until_it_is_stored_anew(
    served: StoreThread,
) -> None:
    async def play(store: Store) -> None:
        numbers, _ = intern(store, [b"damaged"])
        store.chunks.count(numbers)
        store.chunks.condemn(numbers, damaged=True)
        await store.commit()
        store.chunks.uncount(numbers)
        with Gate() as gate:
            anew = Worker(store, [b"damaged"], gate.passes)
            assert gate.arrived.wait(30)
            assert not store.chunks.sweep(numbers[0], 1), "a worker stores it anew"
        assert anew.end() == numbers
        store.chunks.count(anew.numbers)
        assert store.chunks.heal(2) == 1
        assert not store.chunks.get(numbers[0]).extent.damaged
        assert not store.chunks._pins

    served.run(play)


def test_a_damaged_chunk_is_stored_anew_once(
    served: StoreThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(store: Store) -> None:
        numbers, _ = intern(store, [b"damaged"])
        store.chunks.count(numbers)
        store.chunks.condemn(numbers, damaged=True)
        await store.commit()
        appended = slow_append(store, monkeypatch, list)
        with Gate() as gate:
            one = Worker(store, [b"damaged"], gate.passes)
            assert gate.arrived.wait(30)
            two, _ = intern(store, [b"damaged"])
        assert one.end() == two == numbers
        assert appended == [b"damaged"]
        store.chunks.unpin([*one.numbers, *two])

    served.run(play)


def break_record(store: Store, monkeypatch: pytest.MonkeyPatch, number: ChunkNo) -> None:
    """The record of a chunk cannot be read until undo()."""
    get = store.overlay.get

    def damaged(database: int, key: bytes) -> bytes | None:
        if (database, key) == (layout.CHUNKS, layout.u48(number)):
            raise IndexDamagedError("a bad page")
        return get(database, key)

    monkeypatch.setattr(store.overlay, "get", damaged)


def test_one_that_cannot_be_healed_does_not_keep_others_from_it(
    served: StoreThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(store: Store) -> None:
        numbers, _ = intern(store, [b"one", b"two"])
        store.chunks.count(numbers)
        store.chunks.condemn(numbers, damaged=True)
        await store.commit()
        for data in (b"one", b"two"):
            store.chunks.unpin(intern(store, [data])[0])
        break_record(store, monkeypatch, numbers[0])
        assert store.chunks.heal(1) == 1
        assert store.chunks.heal(1) == 0
        assert caplog.text.count(f"chunk {numbers[0]} was written anew and stays damaged") == 1
        monkeypatch.undo()
        assert store.chunks.heal(1) == 1, "as soon as its record can be read"
        assert not store.chunks.landing_packs()

    served.run(play)


def test_nothing_is_counted_if_one_record_cannot_be_read(
    served: StoreThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(store: Store) -> None:
        numbers, _ = intern(store, [b"one", b"two"])
        store.chunks.count(numbers)
        both, _ = intern(store, [b"one", b"two"])
        break_record(store, monkeypatch, numbers[1])
        for count in (store.chunks.count, store.chunks.count_again):
            with pytest.raises(IndexDamagedError):
                count(both)
            assert store.chunks.get(numbers[0]).refs == 1
        monkeypatch.undo()
        store.chunks.count(both)
        assert store.chunks.get(numbers[0]).refs == store.chunks.get(numbers[1]).refs == 2
        assert not store.chunks._pins

    served.run(play)


def test_a_change_of_a_recipe_that_fails_counts_and_pins_nothing(
    served: StoreThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(store: Store) -> None:
        def stored(data: bytes) -> tuple[ChunkNo, list[recipe.Part]]:
            (number,), _ = intern(store, [data])
            return number, [recipe.chunk(number, len(data))]

        ino = store.tree.nameless(0o100644, 0, 0)
        blob = store.blobs.begin(ino)
        old, parts = stored(b"before")
        store.blobs.splice(blob, 0, 0, parts, 6)
        new, parts = stored(b"behind")
        break_record(store, monkeypatch, old)
        with pytest.raises(IndexDamagedError):
            store.blobs.splice(blob, 0, 6, parts, 6)
        monkeypatch.undo()
        assert not store.chunks._pins and not store.chunks._landing
        with pytest.raises(IndexDamagedError):
            store.chunks.get(new)
        assert [part.ref for _, part in store.blobs.parts(blob, 0, 6)] == [old]
        _, parts = stored(b"behind")
        store.blobs.splice(blob, 0, 6, parts, 6)
        assert store.chunks.get(old).refs == 0

    served.run(play)
