"""docs/format.md says what the code does: its tables add up, its example can be read."""

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from cafs import storefile
from cafs._index import unseal
from cafs.archives.engine_record import EngineRecord
from cafs.blobs import codec, fileheader, recipe, sidecar
from cafs.blobs.codec import CODECS
from cafs.blobs.digests import Digests
from cafs.blobs.fileheader import HEADER_LENGTH, PACK_MAGIC, SIDECAR_MAGIC, FileHeader
from cafs.blobs.pack import PACK_SIZE_MAX, PackStore
from cafs.blobs.recipe import KINDS
from cafs.blobs.sidecar import RECORD_LENGTH, SidecarRecord, read_sidecar
from cafs.config import StoreParams
from cafs.durable import Disk
from cafs.index import layout, pending
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.counters import Counters
from cafs.index.env import MAP_SIZE, MAX_READERS
from cafs.index.layout import BlobRecord, ChunkRecord, PackRecord
from cafs.index.overlay import Layer
from cafs.index.writer import IndexWriter
from cafs.operate.check import Check
from cafs.tree import names, tree
from cafs.types import DAMAGED, ROOT, Attr, BlobNo, ChunkNo, Extent, Ino, PackNo
from cafs.view import View

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
TEXT = DOCUMENT.read_text()
STORE_ID = bytes.fromhex("5f0c1f7a2b6e4d3c8a9b0e1d2c3f4a5b")
HELLO = b"Hello, chunk!\n"
WORDS_21 = b"the same words " * 21
ENGINE = EngineRecord("zlib", "zlib 1.2.13", (hashlib.sha256(b"libz.so.1").hexdigest(),))
MADE = recipe.made_part(1, recipe.Made(0, 1, 0, 0, 0, 0))
WORDS = b"the same words " * 20


def example(name: str) -> bytes:
    """The bytes of a block of the worked example; its offsets must be right."""
    match = re.search(rf"^```hex {name}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert match is not None, f"there is no example {name}"
    data = b""
    for line in match[1].splitlines():
        offset, digits = line.split("  ")
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(digits)
    return data


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    match = re.search(rf"^#+ {title}\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match is not None, f"there is no section {title}"
    return match[1]


def rows(title: str) -> list[list[str]]:
    """The cells of the first table of a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def index_value(name: str) -> bytes:
    """The value of a block of the index, without its check, which must be right."""
    data = example(f"index-{name}")
    database, key = next((db, key) for each, (db, key, _) in index_example() if each == name)
    value = unseal(database, key, data[len(key) :])
    assert value is not None
    return value


@pytest.fixture
def packs(tmp_path: Path) -> PackStore:
    (tmp_path / "00000007.pack").write_bytes(example("pack"))
    (tmp_path / "00000007.side").write_bytes(example("sidecar"))
    return PackStore(Disk(), tmp_path, STORE_ID, PACK_SIZE_MAX)


Record = tuple[int, bytes, bytes]
"""Database, key, value."""


def index_example() -> Iterator[tuple[str, Record]]:
    """The records of the worked example as the code makes them, by the names of their blocks."""
    epoch = 1_700_000_000 * 10**9
    changed = epoch + 1_000_000_001
    root = Attr(0o040755, 0, 0, 2, 4096, epoch, epoch, epoch, BlobNo(2), ROOT, 0)
    file = Attr(0o100644, 1000, 1000, 1, 4414, epoch, changed, changed, BlobNo(12), 4096, 0)
    aged = example("aged")
    second = file._replace(size=len(aged), blob=BlobNo(13), aux=0)
    ino, name = Ino(1000), b"app.bits"
    sha256 = example("blob-sha256")
    sha1 = hashlib.sha1(HELLO + b"PK\3\4" + bytes(4096) + WORDS).digest()
    parts = example("recipe")
    counters = Counters(
        generation=3,
        next_ino=1002,
        next_blob=15,
        next_chunk=43,
        next_pack=8,
        inodes=3,
        files=2,
        logical_bytes=4414 + len(aged),
        blobs=2,
        blob_bytes=4414 + len(aged),
        chunks=2,
        raw_bytes=314,
        stored_bytes=45,
    )
    blob = BlobRecord(4414, 1, layout.BLOB_HOLES, sha256, sha1, parts)
    place = layout.entry_key(ROOT, layout.name_cookie(name))
    pack = PackRecord(77, 45, 2, 0, 0)
    no = layout.u48
    yield "counters", (layout.META, COUNTERS_KEY, counters.encode())
    yield "root", (layout.INODES, no(ROOT), layout.pack_inode(root))
    yield "inode", (layout.INODES, no(ino), layout.pack_inode(file))
    yield "entry", (layout.ENTRIES, place, layout.entry_value(ino, 0o10, name))
    yield "blob", (layout.BLOBS, no(12), layout.pack_blob(blob))
    yield "blob-by-sha256", (layout.BLOB_SHA256, layout.digest_key(sha256, BlobNo(12)), b"")
    yield "blob-by-sha1", (layout.BLOB_SHA1, layout.digest_key(sha1, BlobNo(12)), b"")
    gz, place_gz = b"words.gz", layout.entry_key(ROOT, layout.name_cookie(b"words.gz"))
    yield "inode-1001", (layout.INODES, no(1001), layout.pack_inode(second))
    yield "entry-1001", (layout.ENTRIES, place_gz, layout.entry_value(Ino(1001), 0o10, gz))
    for kind, (number, record) in aged_example().items():
        yield kind, (layout.BLOBS, no(number), layout.pack_blob(record))
    for kind, database, digest in (
        ("aged-by-sha256", layout.BLOB_SHA256, hashlib.sha256(aged).digest()),
        ("aged-by-sha1", layout.BLOB_SHA1, hashlib.sha1(aged).digest()),
    ):
        yield kind, (database, layout.digest_key(digest, BlobNo(13)), b"")
    yield "engine-1", (layout.META, layout.engine_key(1), ENGINE.pack())
    for number, raw, at, length, codec_no, refs in (
        (41, HELLO, 32, 14, 0, 1),
        (42, WORDS, 46, 31, 1, 3),
    ):
        xxh3 = xxhash.xxh3_64_intdigest(example("pack")[at : at + length])
        digest = hashlib.sha256(raw).digest()
        extent = Extent(PackNo(7), at, length, codec_no, len(raw), xxh3)
        value = layout.pack_chunk(ChunkRecord(digest, extent, refs))
        key = layout.digest_key(digest, ChunkNo(number))
        yield f"chunk-{number}", (layout.CHUNKS, no(number), value)
        yield f"chunk-{number}-by-sha256", (layout.CHUNK_SHA256, key, b"")
    yield "pack-7", (layout.PACKS, layout.pack_key(PackNo(7)), layout.pack_pack(pack))


def aged_example() -> dict[str, tuple[int, BlobRecord]]:
    """The aged blob of the example and its inner one, as the code makes them."""
    content = example("aged")
    deflated = content[10:-8]
    how = recipe.Made(xxhash.xxh3_64_intdigest(deflated), 1, 0x86, 0, len(WORDS_21), 0)
    made = recipe.made_part(len(deflated), how)
    parts = [recipe.literal(content[:10]), made, recipe.literal(content[-8:])]
    # Plain, so that it can be read, and is the same with every libzstd.
    outer = b"".join(KINDS[part.kind].encode(part) for part in parts)
    inner = recipe.encode([recipe.slice_of(ChunkNo(42), 0, 15), recipe.chunk(ChunkNo(42), 300)])
    sha256, sha1 = hashlib.sha256(content).digest(), hashlib.sha1(content).digest()
    inflated = hashlib.sha256(WORDS_21).digest()
    return {
        "aged": (
            13,
            BlobRecord(len(content), 1, layout.BLOB_AGED, sha256, sha1, outer, BlobNo(14)),
        ),
        "inner": (
            14,
            BlobRecord(315, 1, layout.BLOB_INNER, inflated, bytes(20), inner, BlobNo(13)),
        ),
    }


def chunks_of(packs: PackStore) -> list[bytes]:
    """The raw chunks of pack 7, found by its sidecar alone and verified."""
    side = read_sidecar(packs.sidecar_path(PackNo(7)))
    assert side.header == FileHeader(PackNo(7), STORE_ID)
    raws = []
    for record in side:
        stored = packs.read_stored(PackNo(7), record.offset, record.stored_length)
        assert stored is not None
        assert xxhash.xxh3_64_intdigest(stored) == record.xxh3
        raws.append(codec.decode(record.codec, stored, record.raw_length))
        assert hashlib.sha256(raws[-1]).digest() == record.sha256
    assert side.torn is None
    return raws


def test_the_example_is_a_pack_that_can_be_opened_and_read(packs: PackStore) -> None:
    size = len(example("pack"))
    with closing(packs):
        assert packs.recover({PackNo(7): (size, False)}, PackNo(8)) == []
        packs.check_header(PackNo(7))
        assert chunks_of(packs) == [HELLO, WORDS]


def test_the_example_is_what_the_code_writes() -> None:
    assert example("pack")[:HEADER_LENGTH] == fileheader.encode(
        PACK_MAGIC, FileHeader(PackNo(7), STORE_ID)
    )
    data = fileheader.encode(SIDECAR_MAGIC, FileHeader(PackNo(7), STORE_ID))
    for raw, offset, length, kind in ((HELLO, 32, 14, 0), (WORDS, 46, 31, 1)):
        stored = example("pack")[offset : offset + length]
        digest, xxh3 = hashlib.sha256(raw).digest(), xxhash.xxh3_64_intdigest(stored)
        record = SidecarRecord(digest, offset, length, kind, len(raw), xxh3)
        data += sidecar.encode_record(record)
    assert example("sidecar") == data


def test_the_example_is_a_recipe_that_makes_the_blob(packs: PackStore) -> None:
    parts = [
        recipe.chunk(ChunkNo(41), 14),
        recipe.literal(b"PK\3\4"),
        recipe.hole(4096),
        recipe.chunk(ChunkNo(42), 300),
    ]
    assert recipe.decode(example("recipe")) == parts
    assert recipe.encode(parts) == example("recipe")
    with closing(packs):
        chunks = dict(zip((41, 42), chunks_of(packs), strict=True))
    blob = b"".join(
        chunks[part.ref] if part.kind == recipe.CHUNK else recipe.expand(part, 0, part.length)
        for part in parts
    )
    assert len(blob) == 4414 == recipe.total_length(parts)
    assert hashlib.sha256(blob).digest() == example("blob-sha256")


def test_the_packed_row_is_eight_chunks() -> None:
    parts = [recipe.chunk(ChunkNo(41 + i % 2), (14, 300)[i % 2]) for i in range(8)]
    row = example("packed-row")
    assert (row[0], len(row)) == (recipe.PACKED, 38)
    assert recipe.decode(row) == parts


@pytest.mark.parametrize(("name", "record"), list(index_example()))
def test_the_example_of_the_index_is_what_the_code_writes(name: str, record: Record) -> None:
    database, key, value = record
    seed = xxhash.xxh3_64_intdigest(key, database)
    check = xxhash.xxh3_64_intdigest(value, seed) & 0xFFFFFFFF
    if database not in layout.UNCHECKED:
        value += check.to_bytes(4, "little")
    assert example(f"index-{name}") == key + value


def test_no_block_of_the_index_is_left_out() -> None:
    blocks = re.findall(r"^```hex index-(.*)$", TEXT, re.MULTILINE)
    assert sorted(blocks) == sorted(name for name, _ in index_example())


def test_the_example_can_be_read() -> None:
    """Not by way of the code that wrote it: numbers straight from the document's text."""
    file = layout.unpack_inode(index_value("inode"))
    assert (file.mode, file.uid, file.nlink, file.size) == (0o100644, 1000, 1, 4414)
    assert file.mtime_ns - file.atime_ns == 10**9 + 1
    assert (file.blob, file.aux, file.flags) == (12, 4096, 0)
    entry = example("index-entry")
    assert layout.from_u48(entry) == ROOT
    assert layout.entry_cookie(entry[:14]) == 0x7392467AF60F364E
    assert layout.split_entry(index_value("entry")) == (1000, 8, b"app.bits")
    blob = layout.unpack_blob(index_value("blob"))
    assert (blob.size, blob.refs, blob.flags) == (4414, 1, 4)
    assert blob.parts == example("recipe") == example("index-blob")[0x4A:-4]
    chunk = layout.unpack_chunk(index_value("chunk-42"))
    assert (chunk.extent.pack, chunk.extent.offset, chunk.extent.codec) == (7, 46, 1)
    assert (chunk.extent.stored_length, chunk.extent.raw_length, chunk.refs) == (31, 300, 3)
    assert layout.digest_number(example("index-chunk-42-by-sha256")) == 42
    assert chunk.sha256.startswith(example("index-chunk-42-by-sha256")[:8])
    pack = layout.unpack_pack(index_value("pack-7"))
    assert pack == PackRecord(len(example("pack")), 45, 2, 0, 0)
    counters = Counters.decode(index_value("counters"))
    assert (counters.generation, counters.next_ino, counters.stored_bytes) == (3, 1002, 45)


def test_what_passes_over_all_records_take_is_the_same() -> None:
    assert layout.inode_content(index_value("inode")) == (0o100644, 1, 4414, 12)
    assert layout.blob_use(index_value("blob")) == (1, layout.BLOB_HOLES)
    assert layout.chunk_use(index_value("chunk-42")) == (31, 300, 3)
    for name in ("blob", "aged", "inner"):
        value = index_value(name)
        assert layout.blob_row(value) == layout.unpack_blob(value).parts


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The worked example as a store."""
    for name in ("index", "packs"):
        (tmp_path / name).mkdir()
    (tmp_path / "packs" / "00000007.pack").write_bytes(example("pack"))
    (tmp_path / "packs" / "00000007.side").write_bytes(example("sidecar"))
    content = storefile.StoreFile(STORE_ID, layout.FORMAT_VERSION, StoreParams())
    (tmp_path / storefile.NAME).write_bytes(storefile.render(content))
    layer: Layer = [{} for _ in layout.DATABASES]
    for name, (database, key, _) in index_example():
        # The writer puts the check behind it, which is that of the example.
        layer[database][key] = index_value(name)
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    writer = IndexWriter(tmp_path / "index", lock)
    try:
        writer.write(layer)
    finally:
        writer.close()
        os.close(lock)
    return tmp_path


def test_the_example_is_a_store(store: Path) -> None:
    with View(store) as view:
        # The programs of engines are files of their own, and no part of the example.
        assert [found.kind for found in Check(view).findings()] == ["engine-copy"]
        ino = view.tree.lookup(ROOT, b"app.bits")
        assert ino == 1000
        content_read = b"".join(view.content(view.tree.inodes.get(ino).blob))
        number = view.blobs.by_digest.find(example("blob-sha256"))
    assert content_read == HELLO + b"PK\3\4" + bytes(4096) + WORDS
    assert number == 12


def test_the_aged_blob_is_what_its_recipe_says(store: Path) -> None:
    """By hand, and without the code that rebuilds: zlib's level and memLevel are in *params*."""
    content = example("aged")
    assert gzip.decompress(content) == WORDS_21
    with View(store) as view:
        (_, header), (_, part), (_, trailer) = view.blobs.parts(BlobNo(13), 0, len(content))
        how = recipe.made(part)
        assert b"".join(view.content(BlobNo(14))) == WORDS_21
    engine = zlib.compressobj(how.params & 15, zlib.DEFLATED, -15, how.params >> 4 & 15)
    made = engine.compress(WORDS_21[how.start :][: how.raw_length]) + engine.flush()
    made = made[how.position :][: part.length]
    assert header.data + made + trailer.data == content
    assert how.check == xxhash.xxh3_64_intdigest(made)


@given(st.binary(min_size=1, max_size=255))
def test_cookies_keep_their_bounds(name: bytes) -> None:
    cookie = layout.name_cookie(name)
    assert 3 <= cookie < 1 << 63
    assert cookie in (3, xxhash.xxh3_64_intdigest(name) & ~(1 << 63))
    assert layout.next_cookie(cookie) == cookie + 1


def test_behind_the_last_cookie_comes_the_first() -> None:
    assert layout.next_cookie((1 << 63) - 1) == 3


@pytest.mark.parametrize("literal_length", [1, 40, recipe.LITERAL_MAX])
def test_rows_keep_their_bounds(store: Path, literal_length: int) -> None:
    size = 1000 * literal_length
    parts = [recipe.literal(os.urandom(literal_length)) for _ in range(1000)]
    with View(store) as view:
        digests = Digests(os.urandom(32), os.urandom(20))
        number = view.blobs.adopt(parts, size, digests)
        assert view.blobs.get(number).flags == layout.BLOB_ROWS
        at = 0
        for key, row in view.overlay.scan(layout.RECIPES, layout.u48(number), layout.u48(number)):
            assert layout.recipe_start(key) == at
            decoded = recipe.decode(row)
            assert 1 <= len(decoded) <= layout.PARTS_PER_ROW
            assert len(row) <= layout.ROW_MAX
            at += recipe.total_length(decoded)
        assert at == size


@pytest.mark.parametrize(
    ("title", "length"),
    [
        ("Header of a pack", HEADER_LENGTH),
        ("Header of a sidecar", HEADER_LENGTH),
        ("Record of a sidecar", RECORD_LENGTH),
        ("Part: chunk", len(recipe.encode([recipe.chunk(ChunkNo(1), 1)]))),
        ("Part: literal", len(recipe.encode([recipe.literal(b"xyz")])) - 3),
        ("Part: hole", len(recipe.encode([recipe.hole(1)]))),
        ("Part: made", len(recipe.encode([MADE]))),
        ("Part: slice", len(recipe.encode([recipe.slice_of(ChunkNo(1), 0, 1)]))),
        ("Row that is plain or packed", 5),
        ("Record of counters", len(Counters().encode())),
        ("Record of an inode", len(index_value("inode"))),
        ("Entry", len(layout.entry_value(ROOT, 4, b""))),
        ("Record of a blob", layout.BLOB_HEADER),
        ("Record of a chunk", len(index_value("chunk-41"))),
        ("Record of a pack", len(index_value("pack-7"))),
    ],
)
def test_tables_tile_their_record(title: str, length: int) -> None:
    expected = 0
    for offset, size, kind, *_ in rows(title):
        assert int(offset) == expected
        if size.isdigit():
            expected += int(size)
            assert kind in ("bytes", f"u{8 * int(size)}", f"i{8 * int(size)}")
    assert expected == length


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("Record of counters", list(Counters.__dataclass_fields__)),
        ("Record of an inode", [field.removesuffix("_ns") for field in Attr._fields]),
        ("Record of a blob", [*BlobRecord._fields[:-2], "recipe"]),
        ("Record of a pack", [field.removesuffix("_ns") for field in PackRecord._fields]),
        ("Part: made", ["kind", "length", *recipe.Made._fields]),
    ],
)
def test_fields_have_the_names_of_the_code(title: str, fields: list[str]) -> None:
    assert [field for _, _, _, field, _ in rows(title)] == fields


def test_a_mate_stands_between_digests_and_recipe() -> None:
    ((offset, size, kind, field, _),) = rows("Mate of a blob")
    assert (int(offset), int(size), kind, field) == (layout.BLOB_HEADER, 8, "u64", "mate")
    for flag in (layout.BLOB_AGED, layout.BLOB_INNER):
        record = BlobRecord(1, 1, flag, bytes(32), bytes(20), b"parts", BlobNo(7))
        value = layout.pack_blob(record)
        assert value[int(offset) :] == (7).to_bytes(8, "little") + b"parts"
        assert layout.unpack_blob(value) == record


def test_versions_are_told() -> None:
    store = next(row for row in rows("Versions") if row[0] == "store")
    known = [str(n) for n in range(layout.FIRST_VERSION, layout.FORMAT_VERSION + 1)]
    assert store[1].split(", ") == known
    assert [version for version, _ in rows("Changes")] == known


def test_every_database_is_told_in_its_order() -> None:
    told = [name.strip("`") for name, *_ in rows("Databases")]
    assert told == [name.decode() for name in layout.DATABASES]
    assert f"Up to {MAX_READERS} readers" in section("Index")


def test_databases_without_checks_are_told() -> None:
    text = section("Check of a value").split(", whose values")[0]
    told = re.findall(r"`(\w+)`", text)
    assert told == [layout.DATABASES[number].decode() for number in sorted(layout.UNCHECKED)]


def test_flags_are_those_of_the_code() -> None:
    flags = {
        "Record of an inode": [layout.INODE_PROBED],
        "Record of a blob": [
            *(layout.BLOB_UNHASHED, layout.BLOB_ROWS, layout.BLOB_HOLES),
            *(layout.BLOB_AGED, layout.BLOB_INNER, layout.BLOB_LEFT),
            layout.BLOB_NESTED,
        ],
        "Record of a pack": [layout.PACK_SEALED, layout.PACK_EMPTIED],
    }
    for title, bits in flags.items():
        meaning = next(meaning for *_, field, meaning in rows(title) if field == "flags")
        assert re.findall(r"bit (\d)", meaning) == [str(bit.bit_length() - 1) for bit in bits]
    assert DAMAGED << 24 == 1 << 31


def test_the_pending_file_is_what_the_document_says(tmp_path: Path) -> None:
    table = rows("Pending file")
    at = 0
    for offset, size, *_ in table[:7]:
        assert int(offset) == at
        at += int(size)
    assert at == pending.HEADER.size
    magic = next(meaning for *_, field, meaning in table if field == "magic")
    assert magic == f"`{pending.MAGIC.decode()}`"
    bits = next(meaning for *_, field, meaning in table if field == "bits")
    assert f"{pending.BITS_MIN} to {pending.BITS_MAX}, usually {pending.BITS}" in bits
    path = pending.default_path(STORE_ID)
    assert str(path).replace(STORE_ID.hex(), "<store id in hex>") in section("Pending file")
    made = pending.Pending(tmp_path / "file", 10)
    assert (tmp_path / "file").stat().st_size == 64 + 2 * 128
    made.close()


@pytest.mark.parametrize("title", ["Header of a pack", "Header of a sidecar"])
def test_magic_and_version(title: str) -> None:
    found = {field: meaning for _, _, _, field, meaning in rows(title)}
    assert found["magic"].strip("`").encode() in (PACK_MAGIC, SIDECAR_MAGIC)
    assert int(found["version"]) == fileheader.VERSION


def test_every_codec_and_every_kind_of_part_is_told() -> None:
    assert {int(number): name for number, name, _ in rows("Codecs")} == {
        number: entry.name for number, entry in CODECS.items()
    }
    for number, kind in KINDS.items():
        assert rows(f"Part: {kind.name}")[0][-1] == str(number)
    assert len(re.findall(r"^### Part: ", TEXT, re.MULTILINE)) == len(KINDS)


def test_limits_are_those_of_the_code() -> None:
    limits = dict(rows("Limits"))
    assert f"{PACK_SIZE_MAX:,} bytes" in limits["a pack"]
    assert f"{sidecar.STORED_LENGTH_MAX:,} bytes" == limits["a stored chunk"]
    assert limits["codecs"] == str(DAMAGED)
    assert limits["the index"] == f"{MAP_SIZE:,} bytes"
    assert limits["a recipe in its blob's record"] == f"{layout.INLINE_PARTS_MAX} bytes"
    assert limits["a row of a recipe"] == (
        f"{layout.PARTS_PER_ROW} parts; {layout.ROW_MAX:,} bytes; {recipe.PLAIN_MAX:,} unfolded"
    )
    assert limits["names of an inode"] == f"{tree.LINK_MAX:,}"
    assert limits["a name"] == f"{tree.NAME_MAX} bytes"
    assert limits["names of one directory with the same hash"] == str(names.PROBES)
    assert limits["a symbolic link's target"] == f"{tree.SYMLINK_MAX:,} bytes"
    assert limits["a made part"] == f"{recipe.MADE_MAX:,} bytes"
    assert f"1 to {recipe.MADE_MAX:,}" in section("Part: made")
    rows_text = section("Rows of a recipe")
    assert f"1 to {layout.PARTS_PER_ROW} parts, and at most {layout.ROW_MAX:,} bytes" in rows_text
    assert f"up to {layout.INLINE_PARTS_MAX} bytes" in section("Record of a blob")
    assert f"no longer than {recipe.LITERAL_MAX} bytes" in section("Part: literal")
    packed = section("Row that is plain or packed")
    assert f"A writer packs a row of {recipe.PACK_FROM} bytes and more" in packed
    assert f"1 to {recipe.PLAIN_MAX:,}" in packed


def test_named_tests_exist() -> None:
    root = DOCUMENT.parents[1]
    sources = {str(path.relative_to(root)): path.read_text() for path in root.glob("tests/*/*.py")}
    for path in re.findall(r"`(tests/[\w/]+\.py)", TEXT):
        assert path in sources
    for name in re.findall(r"\b(test_\w+)`", TEXT):
        assert any(f"def {name}(" in source for source in sources.values()), name
