"""The parts of a recipe, and how they are written into a row of the index.

Owns the kinds of parts and their bytes; which row holds which parts is the index's business.
Invariant: ``decode(encode(parts)) == parts``, and ``decode`` answers anything that ``encode``
cannot have made with IndexDamagedError.  docs/format.md, "Recipes", states the bytes.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import repeat
from typing import Final, NamedTuple

import zstandard

from cafs.errors import IndexDamagedError
from cafs.types import ChunkNo

CHUNK: Final = 1
LITERAL: Final = 2
HOLE: Final = 3
MADE: Final = 4
SLICE: Final = 5

LITERAL_MAX: Final = 128
"""Bytes: what is no longer than this is written into the recipe instead of a pack."""
MADE_MAX: Final = 1 << 20
"""Bytes of one made part: they are all verified before the first of them is given out."""

PACKED: Final = 0xFF
"""First byte of a row that is one zstd frame: the same headers stand in many zips' literals,
and a chunk's number is near its neighbour's."""
PACK_FROM: Final = 64
"""Bytes from which that is tried."""
PLAIN_MAX: Final = 1 << 16
"""Bytes that a row may unfold to."""
_PACKED_MARK: Final = bytes((PACKED,))
_PACKED_HEAD: Final = struct.Struct("<BI")


class _Contexts(threading.local):
    """zstd contexts may not be shared by threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(
            level=1, write_content_size=False, write_checksum=False, write_dict_id=False
        )
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


class Part(NamedTuple):
    """A slice of a blob and where its bytes come from."""

    kind: int
    length: int
    """Bytes of the blob, above 0."""
    ref: int
    """CHUNK, SLICE: the chunk's number.  Otherwise 0."""
    data: bytes
    """LITERAL: the bytes.  MADE, SLICE: see made() and slice_offset().  Otherwise empty."""


class Made(NamedTuple):
    """How the bytes of a made part come about: an engine's output for bytes of the inner blob."""

    check: int
    """XXH3-64 of the part's bytes."""
    engine: int
    """Number of the engine's record, above 0."""
    params: int
    """What the engine is told: level (bits 0 to 3), memLevel (4 to 7), strategy (8 to 10)."""
    start: int
    """Where the engine's whole input begins in the inner blob ..."""
    raw_length: int
    """... and how many bytes it has."""
    position: int
    """Bytes of the engine's output before this part."""


def chunk(number: ChunkNo, length: int) -> Part:
    """A whole stored chunk of *length* raw bytes."""
    return Part(CHUNK, length, number, b"")


def literal(data: bytes) -> Part:
    """Bytes that stand in the recipe itself."""
    return Part(LITERAL, len(data), 0, data)


def hole(length: int) -> Part:
    """*length* zero bytes that are stored nowhere."""
    return Part(HOLE, length, 0, b"")


def made_part(length: int, how: Made) -> Part:
    """*length* bytes that an engine makes."""
    return Part(MADE, length, 0, _MADE_DATA.pack(*how))


def made(part: Part) -> Made:
    """How the bytes of a MADE part come about."""
    return Made._make(_MADE_DATA.unpack(part.data))


def slice_of(number: ChunkNo, offset: int, length: int) -> Part:
    """*length* bytes of a stored chunk, from its byte *offset* on."""
    return Part(SLICE, length, number, _OFFSET.pack(offset))


def slice_offset(part: Part) -> int:
    """Where in its chunk a SLICE part begins."""
    return int(_OFFSET.unpack(part.data)[0])


class Kind(NamedTuple):
    """One kind of part.  A new one is one more entry in :data:`KINDS`."""

    name: str
    encode: Callable[[Part], bytes]
    """The part with its kind byte; raises struct.error or ValueError for what has no form."""
    decode: Callable[[bytes, int], tuple[Part, int]]
    """Row and position of a part's kind byte to the part and the position after it."""
    expand: Callable[[Part, int, int], bytes] | None
    """Bytes [low, high) of the part, from the part alone; None if it takes reading to know."""
    counts_chunk: bool
    """Whether *ref* is a chunk number, which the chunk's reference count must count."""


_CHUNK = struct.Struct("<BIIH")
_LITERAL = struct.Struct("<BH")
_HOLE = struct.Struct("<BQ")
_MADE = struct.Struct("<BI36s")
_MADE_DATA = struct.Struct("<QHHQQQ")
_SLICE = struct.Struct("<BIIH4s")
_OFFSET = struct.Struct("<I")
_LENGTH_MAX: Final = (1 << 63) - 1
_REF_MAX: Final = (1 << 48) - 1
_SLICE_END: Final = (1 << 32) - 1
_make_part: Final[Callable[[Iterable[object]], Part]] = partial(tuple.__new__, Part)
"""Part._make without a call into Python."""


def _encode_chunk(part: Part) -> bytes:
    if not 0 < part.ref <= _REF_MAX:
        raise ValueError(f"{part.ref} is no chunk number")
    return _CHUNK.pack(CHUNK, part.length, part.ref & 0xFFFFFFFF, part.ref >> 32)


def _decode_chunk(row: bytes, at: int) -> tuple[Part, int]:
    _, length, low, high = _CHUNK.unpack_from(row, at)
    ref = low | high << 32
    if not ref:
        raise IndexDamagedError(f"a recipe refers to chunk 0 at byte {at} of its row")
    return _make_part((CHUNK, length, ref, b"")), at + _CHUNK.size


def _encode_literal(part: Part) -> bytes:
    if len(part.data) != part.length:
        raise ValueError("a literal's length is not that of its bytes")
    return _LITERAL.pack(LITERAL, part.length) + part.data


def _decode_literal(row: bytes, at: int) -> tuple[Part, int]:
    _, length = _LITERAL.unpack_from(row, at)
    start = at + _LITERAL.size
    data = row[start : start + length]
    if len(data) != length:
        raise IndexDamagedError(f"a recipe's literal at byte {at} is longer than its row")
    return _make_part((LITERAL, length, 0, data)), start + length


def _encode_hole(part: Part) -> bytes:
    if part.length > _LENGTH_MAX:
        raise ValueError("a hole is longer than a file can be")
    return _HOLE.pack(HOLE, part.length)


def _decode_hole(row: bytes, at: int) -> tuple[Part, int]:
    _, length = _HOLE.unpack_from(row, at)
    if length > _LENGTH_MAX:
        raise IndexDamagedError(f"a recipe's hole at byte {at} is longer than a file can be")
    return _make_part((HOLE, length, 0, b"")), at + _HOLE.size


def _encode_made(part: Part) -> bytes:
    _check_made(part.length, made(part), ValueError)
    return _MADE.pack(MADE, part.length, part.data)


def _decode_made(row: bytes, at: int) -> tuple[Part, int]:
    _, length, data = _MADE.unpack_from(row, at)
    part = _make_part((MADE, length, 0, data))
    _check_made(length, made(part), IndexDamagedError)
    return part, at + _MADE.size


def _check_made(length: int, how: Made, error: type[Exception]) -> None:
    if length > MADE_MAX:
        raise error(f"a made part of a recipe has {length} bytes")
    if not how.engine:
        raise error("a made part of a recipe has no engine")
    if max(how.start + how.raw_length, how.position + length) > _LENGTH_MAX:
        raise error("a made part of a recipe comes from beyond the end of any blob")


def _encode_slice(part: Part) -> bytes:
    if not 0 < part.ref <= _REF_MAX:
        raise ValueError(f"{part.ref} is no chunk number")
    if slice_offset(part) + part.length > _SLICE_END:
        raise ValueError("a slice ends behind any chunk")
    return _SLICE.pack(SLICE, part.length, part.ref & 0xFFFFFFFF, part.ref >> 32, part.data)


def _decode_slice(row: bytes, at: int) -> tuple[Part, int]:
    _, length, low, high, data = _SLICE.unpack_from(row, at)
    part = _make_part((SLICE, length, low | high << 32, data))
    if not part.ref:
        raise IndexDamagedError(f"a recipe refers to chunk 0 at byte {at} of its row")
    if slice_offset(part) + length > _SLICE_END:
        raise IndexDamagedError(f"a recipe's slice at byte {at} of its row ends behind any chunk")
    return part, at + _SLICE.size


def _expand_literal(part: Part, low: int, high: int) -> bytes:
    return part.data[low:high]


def _expand_hole(_part: Part, low: int, high: int) -> bytes:
    return bytes(high - low)


KINDS: Final[dict[int, Kind]] = {
    CHUNK: Kind("chunk", _encode_chunk, _decode_chunk, None, counts_chunk=True),
    LITERAL: Kind("literal", _encode_literal, _decode_literal, _expand_literal, counts_chunk=False),
    HOLE: Kind("hole", _encode_hole, _decode_hole, _expand_hole, counts_chunk=False),
    MADE: Kind("made", _encode_made, _decode_made, None, counts_chunk=False),
    SLICE: Kind("slice", _encode_slice, _decode_slice, None, counts_chunk=True),
}
_DECODERS: Final = {number: kind.decode for number, kind in KINDS.items()}
_COUNTED: Final = frozenset(number for number, kind in KINDS.items() if kind.counts_chunk)


def encode(parts: Iterable[Part]) -> bytes:
    """The bytes of a recipe row.  Raises ValueError for a part that has no form."""
    try:
        pieces = []
        for part in parts:
            if part.length <= 0:
                raise ValueError("a part of a recipe has no bytes")
            pieces.append(KINDS[part.kind].encode(part))
        plain = b"".join(pieces)
    except (struct.error, KeyError) as error:
        raise ValueError(f"a part of a recipe has no form: {error}") from error
    if not PACK_FROM <= len(plain) <= PLAIN_MAX:
        return plain
    packed = _PACKED_HEAD.pack(PACKED, len(plain)) + _contexts.compressor.compress(plain)
    return packed if len(packed) < len(plain) else plain


def decode(row: bytes) -> list[Part]:
    """The parts of a recipe row, in order.

    Raises IndexDamagedError for an unknown kind, a part without bytes, a reference to chunk 0
    and a row that ends within a part.
    """
    if row[:1] == _PACKED_MARK:
        row = _unpacked(row)
    # Nearly every row is chunks and nothing else: then its kind bytes stand at a fixed distance,
    # and a first byte that is CHUNK means that the next part's begins where it is looked for.
    count, rest = divmod(len(row), _CHUNK.size)
    if not rest and row[:: _CHUNK.size] == b"\1" * count:
        return _decode_chunks(row, count)
    parts = []
    at = 0
    try:
        while at < len(row):
            part, after = _DECODERS[row[at]](row, at)
            if not part.length:
                raise IndexDamagedError(f"a recipe's part at byte {at} of its row has no bytes")
            parts.append(part)
            at = after
    except struct.error as error:
        raise IndexDamagedError(f"a recipe's row ends within the part at byte {at}") from error
    except KeyError as error:
        raise IndexDamagedError(
            f"a recipe has a part of the unknown kind {error} at byte {at} of its row"
        ) from error
    return parts


def _unpacked(row: bytes) -> bytes:
    try:
        _, length = _PACKED_HEAD.unpack_from(row)
        frame = row[_PACKED_HEAD.size :]
        if not 0 < length <= PLAIN_MAX or zstandard.frame_content_size(frame) not in (-1, length):
            raise IndexDamagedError(f"a recipe's row cannot unfold to {length} bytes")
        plain = _contexts.decompressor.decompress(
            frame, max_output_size=length, allow_extra_data=False
        )
    except (struct.error, zstandard.ZstdError) as error:
        raise IndexDamagedError(f"a recipe's row does not unfold: {error}") from error
    if len(plain) != length or plain[:1] == _PACKED_MARK:
        raise IndexDamagedError(f"a recipe's row does not unfold to {length} bytes")
    return plain


def _decode_chunks(row: bytes, count: int) -> list[Part]:
    """Column by column and without a call per part: 40 us for 128 parts instead of 100."""
    fields = _chunk_row(count).unpack(row)
    lengths = fields[1::4]
    refs: Sequence[int] = fields[2::4]
    high = fields[3::4]
    if any(high):
        refs = [low | upper << 32 for low, upper in zip(refs, high, strict=True)]
    if 0 in lengths or 0 in refs:
        raise IndexDamagedError("a recipe has a part without bytes or a reference to chunk 0")
    return list(map(_make_part, zip(fields[0::4], lengths, refs, repeat(b""), strict=False)))


@lru_cache(maxsize=1024)
def _chunk_row(count: int) -> struct.Struct:
    return struct.Struct("<" + "BIIH" * count)


def chunk_refs(parts: Iterable[Part]) -> list[ChunkNo]:
    """The chunk numbers of *parts*, in order, each as often as it is referred to."""
    return [ChunkNo(part.ref) for part in parts if part.kind in _COUNTED]


def row_refs(row: bytes) -> Sequence[int]:
    """The chunk numbers of an encoded row, as :func:`chunk_refs` gives them for its parts.

    For passes over all recipes: no part is made where a row is chunks only, as nearly all are.
    Raises IndexDamagedError as :func:`decode` does, if it has to look that closely.
    """
    count, rest = divmod(len(row), _CHUNK.size)
    if rest or row[:: _CHUNK.size] != b"\1" * count:
        return chunk_refs(decode(row))
    fields = _chunk_row(count).unpack(row)
    high = fields[3::4]
    if any(high):
        return [low | upper << 32 for low, upper in zip(fields[2::4], high, strict=True)]
    return fields[2::4]


def expand(part: Part, low: int, high: int) -> bytes:
    """Bytes [low, high) of a part that is not stored elsewhere; both within the part.

    Raises ValueError for a kind that must be read from somewhere.
    """
    make = KINDS[part.kind].expand
    if make is None:
        raise ValueError(f"a part of the kind {KINDS[part.kind].name} has to be read")
    return make(part, low, high)


def total_length(parts: Iterable[Part]) -> int:
    """Bytes of the blob that *parts* make."""
    return sum(part.length for part in parts)


def hole_length(parts: Iterable[Part]) -> int:
    """Bytes of those of *parts* that are stored nowhere."""
    return sum(part.length for part in parts if part.kind == HOLE)
