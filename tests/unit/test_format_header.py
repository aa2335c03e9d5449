"""native/include/cafs_format.h reads what cafs.index.layout writes, field by field."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from cafs._index import mark, seal
from cafs.blobs import codec, fileheader, recipe
from cafs.blobs.fileheader import HEADER_LENGTH
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.counters import Counters
from cafs.index.layout import BlobRecord, ChunkRecord, PackRecord
from cafs.index.pending import BITS_MIN, HEADER, Pending
from cafs.tree import names
from cafs.types import ROOT, Attr, BlobNo, ChunkNo, Extent, Ino, PackNo
from tests.unit.pending_reader import BLOB, ENTRY, INODE, mix

INCLUDE = Path(__file__).parents[2] / "native" / "include"
HEADER_TEXT = (INCLUDE / "cafs_format.h").read_text()
PROBE = Path(__file__).parent / "format_probe.c"
FLAGS = (
    *("-std=c11", "-O1", "-g", "-shared", "-fPIC", "-Wall", "-Wextra"),
    *("-Wconversion", "-Wshadow", "-Werror", f"-I{INCLUDE}"),
)
SANITIZED = (
    *("-std=c11", "-g", "-O1", "-fno-omit-frame-pointer", f"-I{INCLUDE}"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"),
)
NO = (1 << 48) - 1
U64 = st.integers(0, (1 << 64) - 1)
U48 = st.integers(0, NO)
U32 = st.integers(0, (1 << 32) - 1)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)


class Entry(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_size_t),
    )


class Inode(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("mode", "uid", "gid", "nlink")),
        ("size", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("atime_ns", "mtime_ns", "ctime_ns")),
        ("blob", ctypes.c_uint64),
        ("aux", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
    )


class Blob(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint64),
        ("refs", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("mate", ctypes.c_uint64),
        ("sha256", ctypes.c_void_p),
        ("sha1", ctypes.c_void_p),
        ("recipe", ctypes.c_void_p),
        ("recipe_length", ctypes.c_size_t),
    )


class Chunk(ctypes.Structure):
    _fields_ = (
        ("sha256", ctypes.c_void_p),
        *((name, ctypes.c_uint32) for name in ("pack", "offset", "stored_length")),
        ("codec", ctypes.c_uint8),
        ("damaged", ctypes.c_bool),
        ("raw_length", ctypes.c_uint32),
        ("xxh3", ctypes.c_uint64),
        ("refs", ctypes.c_uint32),
    )


class Pack(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint64),
        ("live_bytes", ctypes.c_uint64),
        ("live_chunks", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("emptied_ns", ctypes.c_uint64),
    )


class Part(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint8),
        ("length", ctypes.c_uint64),
        ("chunk", ctypes.c_uint64),
        ("offset", ctypes.c_uint32),
        ("data", ctypes.c_void_p),
    )


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    target = tmp_path_factory.mktemp("probe") / "probe.so"
    built = subprocess.run(
        ["gcc", *FLAGS, str(PROBE), "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    library = ctypes.CDLL(str(target))
    for name in ("probe_name_cookie", "probe_next_cookie", "probe_mix"):
        getattr(library, name).restype = ctypes.c_uint64
    library.probe_check.restype = ctypes.c_uint32
    library.probe_database_name.restype = ctypes.c_char_p
    library.probe_next_cookie.argtypes = [ctypes.c_uint64]
    library.probe_mix.argtypes = [ctypes.c_uint, ctypes.c_uint64, ctypes.c_uint64]
    return library


def read(probe: ctypes.CDLL, what: str, record: ctypes.Structure, value: bytes) -> bool:
    """Read a record as C does; the bytes are kept with it, because it may point into them."""
    buffer = ctypes.create_string_buffer(value, len(value))
    record.__dict__["buffer"] = buffer
    function = getattr(probe, f"probe_{what}")
    return bool(function(ctypes.byref(record), buffer, ctypes.c_size_t(len(value))))


def defined(name: str) -> int:
    """A number that the header defines."""
    match = re.search(rf"^#define {name} (0x[0-9a-f]+|\d+)U?$", HEADER_TEXT, re.MULTILINE)
    assert match is not None, name
    return int(match[1], 0)


def test_constants_are_those_of_the_code() -> None:
    wanted = {
        "CAFS_FORMAT_VERSION": layout.FORMAT_VERSION,
        "CAFS_ROOT": ROOT,
        "CAFS_PROBES": names.PROBES,
        "CAFS_DIGEST_PREFIX": layout.DIGEST_PREFIX,
        "CAFS_INODE_PROBED": layout.INODE_PROBED,
        "CAFS_BLOB_HEADER": layout.BLOB_HEADER,
        "CAFS_BLOB_UNHASHED": layout.BLOB_UNHASHED,
        "CAFS_BLOB_ROWS": layout.BLOB_ROWS,
        "CAFS_BLOB_HOLES": layout.BLOB_HOLES,
        "CAFS_BLOB_AGED": layout.BLOB_AGED,
        "CAFS_BLOB_INNER": layout.BLOB_INNER,
        "CAFS_BLOB_LEFT": layout.BLOB_LEFT,
        "CAFS_PACK_SEALED": layout.PACK_SEALED,
        "CAFS_PACK_EMPTIED": layout.PACK_EMPTIED,
        "CAFS_FILE_HEADER": HEADER_LENGTH,
        "CAFS_CODEC_RAW": codec.RAW,
        "CAFS_CODEC_ZSTD": codec.ZSTD,
        "CAFS_PART_CHUNK": recipe.CHUNK,
        "CAFS_PART_LITERAL": recipe.LITERAL,
        "CAFS_PART_HOLE": recipe.HOLE,
        "CAFS_PART_MADE": recipe.MADE,
        "CAFS_PART_SLICE": recipe.SLICE,
        "CAFS_MADE_MAX": recipe.MADE_MAX,
        "CAFS_ROW_PACKED": recipe.PACKED,
        "CAFS_PENDING_HEADER": HEADER.size,
        "CAFS_PENDING_BITS_MIN": BITS_MIN,
    }
    assert {name: defined(name) for name in wanted} == wanted
    assert f'"{fileheader.PACK_MAGIC.decode()}"' in HEADER_TEXT


def test_databases_are_those_of_the_code(probe: ctypes.CDLL) -> None:
    for number, name in enumerate(layout.DATABASES):
        assert probe.probe_database_name(number) == name
        assert bool(probe.probe_is_checked(number)) == (number not in layout.UNCHECKED)
    assert probe.probe_database_name(len(layout.DATABASES)) is None


@given(
    number=st.integers(0, len(layout.DATABASES) - 1),
    key=st.binary(min_size=1, max_size=300),
    value=st.binary(max_size=3000),
)
def test_checks(probe: ctypes.CDLL, number: int, key: bytes, value: bytes) -> None:
    seed = xxhash.xxh3_64_intdigest(key, number)
    check = xxhash.xxh3_64_intdigest(value, seed) & 0xFFFFFFFF
    size = ctypes.c_size_t
    found = probe.probe_check(number, key, size(len(key)), value, size(len(value)))
    assert found == check
    sealed = value + check.to_bytes(4, "little")
    if number not in layout.UNCHECKED:
        assert seal(number, key, value) == sealed
    length = size(len(sealed))
    assert probe.probe_unseal(number, key, size(len(key)), sealed, ctypes.byref(length))
    assert length.value == len(value)
    for wrong in (sealed[:-1], b"abc", b"", sealed[:-1] + bytes([sealed[-1] ^ 1])):
        length = size(len(wrong))
        assert not probe.probe_unseal(number, key, size(len(key)), wrong, ctypes.byref(length))


@given(number=U48, second=U64, digest=st.binary(min_size=32, max_size=32))
def test_keys(probe: ctypes.CDLL, number: int, second: int, digest: bytes) -> None:
    made = ctypes.create_string_buffer(64)
    probe.probe_keys(made, ctypes.c_uint64(number), ctypes.c_uint64(second), digest)
    pack = PackNo(second & 0xFFFFFFFF)
    keys = (
        layout.u48(number),
        layout.entry_key(Ino(number), second),
        layout.recipe_key(BlobNo(number), second),
        layout.digest_key(digest, ChunkNo(number)),
        layout.pack_key(pack),
    )
    assert made.raw[: sum(map(len, keys))] == b"".join(keys)


@given(name=st.binary(min_size=1, max_size=255), cookie=st.integers(3, (1 << 63) - 1))
def test_cookies(probe: ctypes.CDLL, name: bytes, cookie: int) -> None:
    assert probe.probe_name_cookie(name, ctypes.c_size_t(len(name))) == layout.name_cookie(name)
    for each in (cookie, 3, (1 << 63) - 2, (1 << 63) - 1):
        assert probe.probe_next_cookie(each) == layout.next_cookie(each)


@given(ino=U48, kind=st.integers(0, 255), name=st.binary(min_size=1, max_size=255))
def test_entries(probe: ctypes.CDLL, ino: int, kind: int, name: bytes) -> None:
    entry = Entry()
    assert read(probe, "entry", entry, layout.entry_value(Ino(ino), kind, name))
    assert (entry.ino, entry.type) == (ino, kind)
    assert ctypes.string_at(entry.name, entry.name_length) == name
    for wrong in (b"", bytes(7), bytes(7 + 256)):
        assert not read(probe, "entry", Entry(), wrong)


@given(
    attr=st.builds(Attr, *[U32] * 4, U64, I64, I64, I64, U64.map(BlobNo), U64, U32),
)
def test_inodes(probe: ctypes.CDLL, attr: Attr) -> None:
    inode = Inode()
    value = layout.pack_inode(attr)
    assert read(probe, "inode", inode, value)
    assert tuple(getattr(inode, name) for name in Attr._fields) == attr
    assert not read(probe, "inode", Inode(), value[:-1])
    assert not read(probe, "inode", Inode(), value + b"\0")


@given(
    record=st.builds(
        BlobRecord,
        *(U64, U32, U32, st.binary(min_size=32, max_size=32)),
        *(st.binary(min_size=20, max_size=20), st.binary(max_size=600), U64.map(BlobNo)),
    )
)
def test_blobs(probe: ctypes.CDLL, record: BlobRecord) -> None:
    blob = Blob()
    assert read(probe, "blob", blob, layout.pack_blob(record))
    assert (blob.size, blob.refs, blob.flags) == record[:3]
    assert ctypes.string_at(blob.sha256, 32) == record.sha256
    assert ctypes.string_at(blob.sha1, 20) == record.sha1
    assert ctypes.string_at(blob.recipe, blob.recipe_length) == record.parts
    mated = bool(record.flags & layout.BLOB_MATED)
    assert blob.mate == (record.mate if mated else 0)
    if mated:
        assert not read(probe, "blob", Blob(), layout.pack_blob(record)[: layout.BLOB_HEADER + 7])
    assert not read(probe, "blob", Blob(), layout.pack_blob(record)[: layout.BLOB_HEADER - 1])


@given(
    extent=st.builds(
        Extent,
        *(U32.map(PackNo), U32, st.integers(0, (1 << 24) - 1), st.integers(0, 127), U32, U64),
    ),
    damaged=st.booleans(),
    refs=U32,
    sha256=st.binary(min_size=32, max_size=32),
)
def test_chunks(
    probe: ctypes.CDLL, extent: Extent, damaged: bool, refs: int, sha256: bytes
) -> None:
    chunk = Chunk()
    record = ChunkRecord(sha256, extent.as_damaged() if damaged else extent, refs)
    value = layout.pack_chunk(record)
    assert read(probe, "chunk", chunk, value)
    assert ctypes.string_at(chunk.sha256, 32) == sha256
    assert (chunk.pack, chunk.offset, chunk.stored_length) == extent[:3]
    assert (chunk.codec, chunk.damaged, chunk.refs) == (extent.codec, damaged, refs)
    assert (chunk.raw_length, chunk.xxh3) == (extent.raw_length, extent.xxh3)
    assert not read(probe, "chunk", Chunk(), value[:-1])


@given(record=st.builds(PackRecord, U64, U64, U32, U32, U64), generation=U64)
def test_packs_and_counters(probe: ctypes.CDLL, record: PackRecord, generation: int) -> None:
    pack = Pack()
    assert read(probe, "pack", pack, layout.pack_pack(record))
    assert tuple(getattr(pack, name) for name in PackRecord._fields) == record
    assert not read(probe, "pack", Pack(), layout.pack_pack(record)[:-1])
    found = ctypes.c_uint64()
    value = Counters(generation=generation).encode()
    length = ctypes.c_size_t
    assert probe.probe_generation(ctypes.byref(found), value, length(len(value)))
    assert found.value == generation
    assert not probe.probe_generation(ctypes.byref(found), value, length(len(value) - 1))


def parts_of(probe: ctypes.CDLL, row: bytes) -> list[recipe.Part] | None:
    """The parts of a plain row as C reads them; None for damage."""
    buffer = ctypes.create_string_buffer(row, len(row))
    at = ctypes.c_size_t(0)
    found = []
    while at.value < len(row):
        part = Part()
        length = ctypes.c_size_t(len(row))
        if not probe.probe_part(ctypes.byref(part), buffer, length, ctypes.byref(at)):
            return None
        if part.kind == recipe.CHUNK:
            found.append(recipe.chunk(ChunkNo(part.chunk), part.length))
        elif part.kind == recipe.LITERAL:
            found.append(recipe.literal(ctypes.string_at(part.data, part.length)))
        elif part.kind == recipe.SLICE:
            found.append(recipe.slice_of(ChunkNo(part.chunk), part.offset, part.length))
        elif part.kind == recipe.MADE:
            made = (ctypes.c_uint64 * 6)()
            probe.probe_made(ctypes.c_void_p(part.data), made)
            found.append(recipe.made_part(part.length, recipe.Made._make(made)))
        else:
            found.append(recipe.hole(part.length))
    return found


parts = st.one_of(
    st.builds(recipe.chunk, st.integers(1, NO).map(ChunkNo), st.integers(1, (1 << 32) - 1)),
    st.builds(recipe.literal, st.binary(min_size=1, max_size=50)),
    st.builds(recipe.hole, st.integers(1, (1 << 63) - 1)),
    st.builds(
        recipe.slice_of,
        *(st.integers(1, NO).map(ChunkNo), st.integers(0, 1 << 31), st.integers(1, 1 << 31)),
    ).filter(lambda part: recipe.slice_offset(part) + part.length < 1 << 32),
    st.builds(
        recipe.made_part,
        st.integers(1, recipe.MADE_MAX),
        st.builds(
            recipe.Made,
            *(U64, st.integers(1, 65535), st.integers(0, 65535), st.integers(0, 1 << 62)),
            *(st.integers(0, (1 << 62) - 1), st.integers(0, 1 << 62)),
        ),
    ),
)


@given(wanted=st.lists(parts, max_size=20), cut=st.integers(0), noise=st.binary(max_size=60))
def test_recipes(probe: ctypes.CDLL, wanted: list[recipe.Part], cut: int, noise: bytes) -> None:
    plain = b"".join(recipe.KINDS[part.kind].encode(part) for part in wanted)
    assert parts_of(probe, plain) == wanted
    # Whatever the one refuses the other does, too.
    for row in (plain[: cut % (len(plain) + 1)], noise, plain + noise):
        if row[:1] == bytes([recipe.PACKED]):
            continue
        try:
            expected = recipe.decode(row)
        except IndexDamagedError:
            assert parts_of(probe, row) is None
        else:
            assert parts_of(probe, row) == expected


def test_packed_rows(probe: ctypes.CDLL) -> None:
    row = recipe.encode([recipe.chunk(ChunkNo(41 + i % 2), 300) for i in range(8)])
    assert row[0] == recipe.PACKED
    unfolded, at, frame = (ctypes.c_size_t() for _ in range(3))
    results = [ctypes.byref(each) for each in (unfolded, at, frame)]
    length = ctypes.c_size_t
    assert probe.probe_packed(row, length(len(row)), *results) == 1
    assert (unfolded.value, at.value, frame.value) == (88, 5, len(row) - 5)
    for wrong in (row[:5], row[:1] + bytes(4) + row[5:], b"\xff\1\0\1\0" + row[5:]):
        assert probe.probe_packed(wrong, length(len(wrong)), *results) == 0
    assert probe.probe_packed(b"\1" + row, length(len(row)), *results) == -1


@given(kind=st.sampled_from([ENTRY, INODE, BLOB]), number=U48, place=U64)
def test_the_hash_of_marks(probe: ctypes.CDLL, kind: int, number: int, place: int) -> None:
    assert probe.probe_mix(kind, number, place) == mix(kind, number, place)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_read_stays_within_its_bytes(tmp_path: Path, seed: int) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    native = INCLUDE.parent
    target = tmp_path / "fuzz"
    sources = [str(native / "index" / "fuzz.c"), str(native / "chunker" / "fuzz_main.c")]
    built = subprocess.run(
        ["gcc", *SANITIZED, *sources, "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        [str(target), str(seed), "2000"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_pending_file(probe: ctypes.CDLL, tmp_path: Path) -> None:
    pending = Pending(tmp_path / "file", 12)
    pending.swap()
    mark(pending.buffer, 0, layout.INODES, layout.u48(5), b"")
    mark(pending.buffer, 1, layout.BLOBS, layout.u48(6), b"")
    pending.committed()
    mark(pending.buffer, 0, layout.INODES, layout.u48(7), b"")
    length = len(pending.buffer)
    # At an address that suits whole words, as a mapping has.
    data = (ctypes.c_uint64 * (length // 8)).from_buffer_copy(pending.buffer)
    header = (ctypes.c_uint64 * 3)()

    def test(kind: int, number: int, size: int = length) -> int:
        place = ctypes.c_uint64(0)
        answer = probe.probe_pending(
            data, ctypes.c_size_t(size), kind, ctypes.c_uint64(number), place, header
        )
        return int(answer)

    assert [test(INODE, 5), test(BLOB, 6), test(INODE, 7), test(INODE, 8)] == [0, 1, 1, 0]
    assert list(header) == [2, os.getpid(), 1]
    assert test(INODE, 5, length - 8) == test(INODE, 5, 64) == test(INODE, 5, 0) == -1
    pending.close()
