"""Every record and key of the index: what was packed is what comes out, and order is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.counters import Counters
from cafs.index.layout import BlobRecord, ChunkRecord, PackRecord
from cafs.types import NO_BLOB, Attr, BlobNo, ChunkNo, Extent, Ino, PackNo

u8 = st.integers(0, 255)
u24 = st.integers(0, (1 << 24) - 1)
u32 = st.integers(0, (1 << 32) - 1)
u48 = st.integers(0, (1 << 48) - 1)
u63 = st.integers(0, (1 << 63) - 1)
u64 = st.integers(0, (1 << 64) - 1)
times = st.integers(-(1 << 63), (1 << 63) - 1)
digests = st.binary(min_size=32, max_size=32)

attrs = st.builds(Attr, u32, u32, u32, u32, u64, times, times, times, u64.map(BlobNo), u64, u32)
blobs = st.builds(
    BlobRecord,
    *(u64, u32, u32, digests, st.binary(min_size=20, max_size=20), st.binary(max_size=99)),
    u64.map(BlobNo),
).map(lambda blob: blob if blob.flags & layout.BLOB_MATED else blob._replace(mate=NO_BLOB))
extents = st.builds(Extent, u32.map(PackNo), u32, u24, u8, u32, u64)
chunks = st.builds(ChunkRecord, digests, extents, u32)
packs = st.builds(PackRecord, u64, u64, u32, u32, u64)


@given(attrs)
def test_an_inode_comes_back(attr: Attr) -> None:
    assert layout.unpack_inode(layout.pack_inode(attr)) == attr


@given(blobs)
def test_a_blob_comes_back(blob: BlobRecord) -> None:
    value = layout.pack_blob(blob)
    assert layout.unpack_blob(value) == blob
    assert layout.blob_use(value) == (blob.refs, blob.flags)
    assert layout.blob_row(value) == blob.parts


@given(chunks)
def test_a_chunk_comes_back(chunk: ChunkRecord) -> None:
    assert layout.unpack_chunk(layout.pack_chunk(chunk)) == chunk


@given(packs)
def test_a_pack_comes_back(pack: PackRecord) -> None:
    assert layout.unpack_pack(layout.pack_pack(pack)) == pack


@given(st.lists(u64, min_size=13, max_size=13))
def test_counters_come_back(numbers: list[int]) -> None:
    counters = Counters(*numbers)
    assert Counters.decode(counters.encode()) == counters


def test_no_record_means_the_counters_of_an_empty_store() -> None:
    assert Counters.decode(None) == Counters()


@given(u48.map(Ino), u8, st.binary(min_size=1, max_size=255))
def test_a_directory_entry_comes_back(ino: Ino, kind: int, name: bytes) -> None:
    assert layout.split_entry(layout.entry_value(ino, kind, name)) == (ino, kind, name)


@given(u48.map(Ino), u63)
def test_the_cookie_of_an_entry_comes_back(parent: Ino, cookie: int) -> None:
    key = layout.entry_key(parent, cookie)
    assert layout.entry_cookie(key) == cookie
    assert layout.from_u48(key) == parent


@given(u48.map(BlobNo), u64)
def test_the_start_of_a_recipe_row_comes_back(blob: BlobNo, start: int) -> None:
    key = layout.recipe_key(blob, start)
    assert layout.recipe_start(key) == start
    assert layout.from_u48(key) == blob


@given(digests, u48.map(ChunkNo))
def test_the_number_under_a_digest_comes_back(digest: bytes, number: ChunkNo) -> None:
    key = layout.digest_key(digest, number)
    assert layout.digest_number(key) == number
    assert key.startswith(digest[: layout.DIGEST_PREFIX])


@given(st.lists(st.tuples(u48, u63), min_size=2))
def test_keys_are_ordered_as_their_numbers(pairs: list[tuple[int, int]]) -> None:
    pairs = sorted(pairs)
    entries = [layout.entry_key(Ino(a), b) for a, b in pairs]
    assert entries == sorted(entries)
    rows = [layout.recipe_key(BlobNo(a), b) for a, b in pairs]
    assert rows == sorted(rows)
    assert [layout.u48(a) for a, _ in pairs] == sorted(layout.u48(a) for a, _ in pairs)


@given(st.binary(max_size=255))
def test_a_cookie_is_one_that_nfs_takes(name: bytes) -> None:
    cookie = layout.name_cookie(name)
    assert 3 <= cookie < 1 << 63
    assert 3 <= layout.next_cookie(cookie) < 1 << 63


def test_the_place_after_the_last_one_is_the_first() -> None:
    assert layout.next_cookie((1 << 63) - 1) == 3


@pytest.mark.parametrize(
    "unpack",
    [layout.unpack_inode, layout.unpack_blob, layout.unpack_chunk, layout.unpack_pack],
)
@pytest.mark.parametrize("value", [b"", b"short"])
def test_a_record_that_is_too_short_is_damage(
    unpack: Callable[[bytes], object], value: bytes
) -> None:
    with pytest.raises(IndexDamagedError):
        unpack(value)


@pytest.mark.parametrize(
    "unpack", [layout.unpack_inode, layout.unpack_chunk, layout.unpack_pack, Counters.decode]
)
def test_a_record_that_is_too_long_is_damage(unpack: Callable[[bytes], object]) -> None:
    with pytest.raises(IndexDamagedError):
        unpack(bytes(500))


def test_databases_have_the_numbers_that_they_are_spoken_of_by() -> None:
    assert layout.DATABASES[layout.META] == b"meta"
    assert layout.DATABASES[layout.UNHASHED] == b"unhashed"
    assert len(set(layout.DATABASES)) == len(layout.DATABASES)
    assert set(range(len(layout.DATABASES))) >= layout.RANGED | layout.SEQUENTIAL


@pytest.mark.parametrize("flag", [layout.BLOB_AGED, layout.BLOB_INNER])
def test_a_mate_that_is_cut_off_is_damage(flag: int) -> None:
    value = layout.pack_blob(BlobRecord(1, 1, flag, bytes(32), bytes(20), b"", BlobNo(7)))
    with pytest.raises(IndexDamagedError):
        layout.unpack_blob(value[:-1])
