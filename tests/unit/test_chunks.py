"""Chunks are stored once, never swept while somebody is about to use them, and counted."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import xxhash

from cafs.blobs import codec
from cafs.blobs.pack import StoredChunk
from cafs.errors import DiskFullError, IndexDamagedError
from cafs.index import layout
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ChunkNo
from tests.model.storethread import StoreThread
from tests.model.test_draft import SMALL


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def intern(store: Store, contents: Sequence[bytes]) -> tuple[list[ChunkNo], list[bytes]]:
    """The chunks' numbers, and which of them had to be stored."""
    stored: list[bytes] = []

    def encode(missing: list[int]) -> list[StoredChunk]:
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
        nothing: dict[bytes, ChunkNo] = {}
        for _ in range(2):
            with monkeypatch.context() as forgetful:
                forgetful.setattr(store.chunks, "_committed", lambda _digests: nothing)
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
