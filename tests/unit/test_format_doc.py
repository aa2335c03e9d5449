"""docs/format.md says what the code does: its tables add up, its example can be read."""

import hashlib
import re
from contextlib import closing
from pathlib import Path

import pytest
import xxhash

from cafs.blobs import codec, fileheader, recipe, sidecar
from cafs.blobs.codec import CODECS
from cafs.blobs.fileheader import HEADER_LENGTH, PACK_MAGIC, SIDECAR_MAGIC, FileHeader
from cafs.blobs.pack import PACK_SIZE_MAX, PackStore
from cafs.blobs.recipe import KINDS
from cafs.blobs.sidecar import RECORD_LENGTH, SidecarRecord, read_sidecar
from cafs.durable import Disk
from cafs.types import ChunkNo, PackNo

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
TEXT = DOCUMENT.read_text()
STORE_ID = bytes.fromhex("5f0c1f7a2b6e4d3c8a9b0e1d2c3f4a5b")
HELLO = b"Hello, chunk!\n"
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


@pytest.fixture
def packs(tmp_path: Path) -> PackStore:
    (tmp_path / "00000007.pack").write_bytes(example("pack"))
    (tmp_path / "00000007.side").write_bytes(example("sidecar"))
    return PackStore(Disk(), tmp_path, STORE_ID, PACK_SIZE_MAX)


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


@pytest.mark.parametrize(
    ("title", "length"),
    [
        ("Header of a pack", HEADER_LENGTH),
        ("Header of a sidecar", HEADER_LENGTH),
        ("Record of a sidecar", RECORD_LENGTH),
        ("Part: chunk", len(recipe.encode([recipe.chunk(ChunkNo(1), 1)]))),
        ("Part: literal", len(recipe.encode([recipe.literal(b"xyz")])) - 3),
        ("Part: hole", len(recipe.encode([recipe.hole(1)]))),
    ],
)
def test_tables_tile_their_record(title: str, length: int) -> None:
    expected = 0
    for offset, size, kind, *_ in rows(title):
        assert int(offset) == expected
        if size.isdigit():
            expected += int(size)
            assert kind in ("bytes", f"u{8 * int(size)}")
    assert expected == length


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
    assert f"no longer than {recipe.LITERAL_MAX} bytes" in section("Part: literal")


def test_named_tests_exist() -> None:
    root = DOCUMENT.parents[1]
    sources = {str(path.relative_to(root)): path.read_text() for path in root.glob("tests/*/*.py")}
    for path in re.findall(r"`(tests/[\w/]+\.py)", TEXT):
        assert path in sources
    for name in re.findall(r"\b(test_\w+)`", TEXT):
        assert any(f"def {name}(" in source for source in sources.values()), name
