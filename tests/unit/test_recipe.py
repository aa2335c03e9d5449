"""Recipes: what is encoded comes back, and nothing else is taken for a recipe."""

import struct

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from cafs.blobs import recipe
from cafs.blobs.recipe import (
    CHUNK,
    HOLE,
    KINDS,
    LITERAL,
    LITERAL_MAX,
    PACK_FROM,
    PACKED,
    PLAIN_MAX,
    Part,
)
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.types import ChunkNo

chunks = st.builds(
    recipe.chunk,
    st.integers(1, (1 << 48) - 1).map(ChunkNo),
    st.integers(1, (1 << 32) - 1),
)
literals = st.builds(recipe.literal, st.binary(min_size=1, max_size=2 * LITERAL_MAX))
holes = st.builds(recipe.hole, st.integers(1, (1 << 63) - 1))
slices = st.builds(
    recipe.slice_of,
    *(st.integers(1, (1 << 48) - 1).map(ChunkNo), st.integers(0, 1 << 31), st.integers(1, 1 << 30)),
)
made = st.builds(
    recipe.made_part,
    st.integers(1, recipe.MADE_MAX),
    st.builds(
        recipe.Made,
        *(st.integers(0, (1 << 64) - 1), st.integers(1, 0xFFFF), st.integers(0, 0xFFFF)),
        *(st.integers(0, 1 << 62), st.integers(0, (1 << 62) - 1), st.integers(0, 1 << 62)),
    ),
)
parts_lists = st.lists(chunks | literals | holes | slices | made, max_size=40)
neighbours = st.builds(
    lambda first, count: [recipe.chunk(ChunkNo(first + i), 65536) for i in range(count)],
    st.integers(1, 1 << 40),
    st.integers(12, layout.PARTS_PER_ROW),
)
"""Recipes as most long ones are: chunks that were stored one after the other."""
MEMBER_HEADER = b"PK\3\4\x14\0\0\0\x08\0" + bytes(16) + b"WEB-INF/lib/"


def zip_row(members: int) -> list[Part]:
    """What a zip becomes: a header as a literal before each member."""
    parts = []
    for i in range(members):
        parts.append(recipe.literal(MEMBER_HEADER + b"%03d.jar" % i))
        parts.append(recipe.chunk(ChunkNo(7000 + i), 20_000))
    return parts


def packed(plain: bytes, length: int | None = None, *, sized: bool = False) -> bytes:
    """A packed row that claims to unfold to *length* bytes; *sized*: its frame says so, too."""
    frame = zstandard.ZstdCompressor(level=1, write_content_size=sized).compress(plain)
    return struct.pack("<BI", PACKED, len(plain) if length is None else length) + frame


PLAIN = b"".join(KINDS[part.kind].encode(part) for part in zip_row(20))


@given(parts_lists)
def test_round_trip(parts: list[Part]) -> None:
    row = recipe.encode(parts)
    decoded = recipe.decode(row)
    assert decoded == parts
    assert all(type(part) is Part for part in decoded)


@given(st.lists(chunks, max_size=300))
def test_round_trip_of_chunks_alone(parts: list[Part]) -> None:
    row = recipe.encode(parts)
    assert len(row) <= 11 * len(parts)
    decoded = recipe.decode(row)
    assert decoded == parts
    assert all(type(part) is Part for part in decoded)


@given(st.lists(chunks, min_size=1, max_size=5), st.integers(0, 4), literals | holes)
def test_both_ways_of_decoding_agree(parts: list[Part], at: int, other: Part) -> None:
    mixed = [*parts[:at], other, *parts[at:]]
    assert [part for part in recipe.decode(recipe.encode(mixed)) if part != other] == parts


@given(st.binary(max_size=120))
@example(b"\x01" * 11)
@example(b"\x01" + bytes(10))
@example(b"\x02\x00\x00")
@example(b"\x03" + b"\xff" * 8)
def test_any_bytes_are_a_recipe_or_damage(row: bytes) -> None:
    try:
        parts = recipe.decode(row)
    except IndexDamagedError:
        return
    assert recipe.decode(recipe.encode(parts)) == parts
    if len(row) < PACK_FROM:
        assert recipe.encode(parts) == row


@given(neighbours)
def test_round_trip_of_packed_rows(parts: list[Part]) -> None:
    row = recipe.encode(parts)
    assert row[0] == PACKED
    # Not much to ask: neighbours' numbers differ in their last byte only.
    assert 3 * len(row) < 2 * 11 * len(parts)
    assert recipe.decode(row) == parts
    assert list(recipe.row_refs(row)) == [part.ref for part in parts]


def test_rows_of_zips_are_packed_to_a_third() -> None:
    parts = zip_row(layout.PARTS_PER_ROW // 2)
    row = recipe.encode(parts)
    plain = sum(len(KINDS[part.kind].encode(part)) for part in parts)
    assert row[0] == PACKED
    assert len(row) < plain / 3
    assert recipe.decode(row) == parts


@given(parts_lists)
def test_packing_never_makes_a_row_longer(parts: list[Part]) -> None:
    row = recipe.encode(parts)
    plain = b"".join(KINDS[part.kind].encode(part) for part in parts)
    assert len(row) <= len(plain)
    assert row == plain or (row[0] == PACKED and len(row) < len(plain) >= PACK_FROM)


def test_short_rows_stay_plain() -> None:
    parts = [recipe.chunk(ChunkNo(1), 1)] * ((PACK_FROM - 1) // 11)
    assert recipe.encode(parts)[0] == CHUNK


def test_a_frame_with_its_content_size_is_a_row_too() -> None:
    assert recipe.decode(packed(PLAIN, sized=True)) == zip_row(20)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (packed(PLAIN, 0), "cannot unfold to 0 bytes"),
        (packed(PLAIN, PLAIN_MAX + 1), "cannot unfold"),
        # A bomb: the frame is a few hundred bytes, what it holds is 64 MiB.
        (packed(bytes(64 << 20), PLAIN_MAX), "does not unfold"),
        (packed(bytes(64 << 20), PLAIN_MAX, sized=True), "cannot unfold"),
        (packed(PLAIN, len(PLAIN) + 1), "does not unfold to"),
        (packed(PLAIN, len(PLAIN) - 1), "does not unfold"),
        (packed(PLAIN, len(PLAIN) + 1, sized=True), "cannot unfold"),
        (packed(packed(PLAIN)), "does not unfold to"),
        (packed(PLAIN) + b"x", "does not unfold"),
        (packed(PLAIN)[:-1], "does not unfold"),
        (packed(PLAIN)[:20], "does not unfold"),
        (packed(PLAIN)[:5], "unfold"),
        (packed(PLAIN)[:3], "does not unfold"),
        (bytes((PACKED,)), "does not unfold"),
        (packed(PLAIN[:-1]), "ends within|longer than its row"),
        (packed(b"\x09" * 100), "unknown kind 9"),
    ],
)
def test_a_packed_row_that_was_damaged_is_named(row: bytes, complaint: str) -> None:
    with pytest.raises(IndexDamagedError, match=complaint):
        recipe.decode(row)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_of_a_packed_row_never_crashes(position: int, flip: int) -> None:
    row = bytearray(packed(PLAIN))
    row[position % len(row)] ^= flip
    try:
        parts = recipe.decode(bytes(row))
    except IndexDamagedError:
        return
    assert recipe.decode(recipe.encode(parts)) == parts


@given(parts_lists.filter(bool), st.data())
def test_a_cut_row_is_damage_or_shorter(parts: list[Part], data: st.DataObject) -> None:
    row = recipe.encode(parts)
    cut = data.draw(st.integers(0, len(row) - 1))
    try:
        found = recipe.decode(row[:cut])
    except IndexDamagedError:
        return
    assert found == parts[: len(found)]
    assert len(found) < len(parts)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (b"\x00", "unknown kind 0 at byte 0"),
        (b"\x06" + bytes(10), "unknown kind 6"),
        (b"\x04" + bytes(39), "ends within"),
        (b"\x04\x01" + bytes(39), "no engine"),
        (b"\x04\x01\x00\x10\x00" + bytes(8) + b"\1" + bytes(27), "has 1048577 bytes"),
        (b"\x04\x01\x00\x00\x00" + bytes(8) + b"\1" + bytes(10) + b"\x80" * 17, "beyond"),
        (b"\x05\x01" + bytes(13), "chunk 0"),
        (b"\x05\x01\0\0\0\1\0\0\0\0\0\xff\xff\xff\xff", "behind any chunk"),
        (b"\x05" + bytes(4) + b"\1" + bytes(9), "no bytes"),
        (b"\x01" + bytes(10), "chunk 0"),
        (b"\x01\x05\x00\x00\x00" + bytes(6), "chunk 0"),
        (b"\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00", "without bytes"),
        (b"\x02\x01\x00x\x01\x05\x00\x00\x00" + bytes(6), "chunk 0 at byte 4"),
        (b"\x02\x01\x00x\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00", "byte 4 .* no bytes"),
        (b"\x02\x00\x00", "no bytes"),
        (b"\x02\x05\x00abcd", "longer than its row"),
        (b"\x02\x05", "ends within"),
        (b"\x03" + bytes(8), "no bytes"),
        (b"\x03" + b"\xff" * 8, "longer than a file"),
        (b"\x01\x05\x00\x00", "ends within"),
    ],
)
def test_damage_is_named(row: bytes, complaint: str) -> None:
    with pytest.raises(IndexDamagedError, match=complaint):
        recipe.decode(row)


@pytest.mark.parametrize(
    "part",
    [
        Part(CHUNK, 0, 1, b""),
        Part(CHUNK, 1 << 32, 1, b""),
        Part(CHUNK, 1, 0, b""),
        Part(CHUNK, 1, 1 << 48, b""),
        Part(LITERAL, 2, 0, b"x"),
        Part(LITERAL, 0, 0, b""),
        Part(LITERAL, 1 << 16, 0, bytes(1 << 16)),
        Part(HOLE, -1, 0, b""),
        Part(HOLE, 1 << 63, 0, b""),
        Part(9, 1, 0, b""),
    ],
)
def test_what_has_no_form_is_refused(part: Part) -> None:
    with pytest.raises(ValueError):
        recipe.encode([part])


def test_references_are_counted_as_often_as_they_are_made() -> None:
    one, two = recipe.chunk(ChunkNo(1), 10), recipe.chunk(ChunkNo(2), 20)
    parts = [one, recipe.literal(b"1"), two, recipe.hole(5), one]
    assert recipe.chunk_refs(parts) == [1, 2, 1]
    assert recipe.total_length(parts) == 10 + 1 + 20 + 5 + 10


def test_expanding() -> None:
    assert recipe.expand(recipe.literal(b"abcdef"), 2, 4) == b"cd"
    assert recipe.expand(recipe.hole(1 << 40), 1 << 39, (1 << 39) + 3) == b"\0\0\0"
    with pytest.raises(ValueError, match="chunk has to be read"):
        recipe.expand(recipe.chunk(ChunkNo(1), 5), 0, 5)


def test_a_literal_of_the_largest_length_has_a_form() -> None:
    assert recipe.decode(recipe.encode([recipe.literal(bytes(LITERAL_MAX))]))


def test_kinds_are_told_apart_by_number_and_name() -> None:
    assert {number: kind.name for number, kind in KINDS.items()} == {
        1: "chunk",
        2: "literal",
        3: "hole",
        4: "made",
        5: "slice",
    }


@given(st.lists(chunks | slices | literals, max_size=30))
def test_slices_count_their_chunk(parts: list[Part]) -> None:
    numbers = [part.ref for part in parts if part.kind != LITERAL]
    assert recipe.chunk_refs(parts) == numbers
    assert list(recipe.row_refs(recipe.encode(parts))) == numbers


def test_made_parts_and_slices_say_where_they_come_from() -> None:
    how = recipe.Made((1 << 64) - 1, 7, 0x86, 5, 1 << 40, 3)
    assert recipe.made(recipe.made_part(9, how)) == how
    part = recipe.slice_of(ChunkNo(4), 100, 20)
    assert (part.ref, recipe.slice_offset(part), part.length) == (4, 100, 20)
    with pytest.raises(ValueError, match="slice has to be read"):
        recipe.expand(part, 0, 1)
    for wrong in (
        recipe.made_part(recipe.MADE_MAX + 1, how),
        recipe.made_part(1, how._replace(engine=0)),
        recipe.made_part(1, how._replace(start=1 << 63)),
        recipe.slice_of(ChunkNo(0), 0, 1),
        recipe.slice_of(ChunkNo(1), (1 << 32) - 1, 1),
    ):
        with pytest.raises(ValueError, match=r"made part|chunk|slice"):
            recipe.encode([wrong])
