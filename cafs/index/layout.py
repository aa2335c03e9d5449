"""Keys and values of the index, as docs/format.md states them.

Owns every struct of the index and nothing else: no I/O here.  Keys are big-endian, so that
LMDB's byte order is numeric order; values are little-endian.  The native readers are held to
the same layouts by a test.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import xxhash

from cafs.errors import IndexDamagedError
from cafs.types import NO_BLOB, Attr, BlobNo, ChunkNo, Extent, Ino, PackNo

FORMAT_VERSION: Final = 2
"""The newest format that is understood."""
FIRST_VERSION: Final = 1
"""What a new store has: a later version is written when the store first needs it."""
AGED_VERSION: Final = 2
"""From this version on blobs may be aged."""

# Databases of the environment.  The position in this tuple is the number by which the overlay
# and the writer process speak of them.
DATABASES: Final = (
    b"meta",
    b"inodes",
    b"entries",
    b"symlinks",
    b"xattrs",
    b"orphans",
    b"blobs",
    b"recipes",
    b"blob_sha256",
    b"blob_sha1",
    b"chunks",
    b"chunk_sha256",
    b"packs",
    b"dead",
    b"unhashed",
)
(
    META,
    INODES,
    ENTRIES,
    SYMLINKS,
    XATTRS,
    ORPHANS,
    BLOBS,
    RECIPES,
    BLOB_SHA256,
    BLOB_SHA1,
    CHUNKS,
    CHUNK_SHA256,
    PACKS,
    DEAD,
    UNHASHED,
) = range(len(DATABASES))

# Keys of these grow with time: the writer appends to the right-most page, which LMDB then
# fills whole instead of half.
SEQUENTIAL: Final = frozenset({INODES, SYMLINKS, BLOBS, RECIPES, CHUNKS, PACKS})
# These are read in ranges, so their part of the overlay is kept sorted.
RANGED: Final = frozenset({ENTRIES, XATTRS, ORPHANS, RECIPES, PACKS, DEAD, UNHASHED})
# Their values are empty: there is nothing to check.
UNCHECKED: Final = frozenset({ORPHANS, BLOB_SHA256, BLOB_SHA1, CHUNK_SHA256, DEAD})

_U48_MAX: Final = (1 << 48) - 1
_INODE: Final = struct.Struct("<IIIIQqqqQQI")
_BLOB: Final = struct.Struct("<QII32s20s")
_MATE: Final = struct.Struct("<Q")
_CHUNK: Final = struct.Struct("<32sIIIIQI")
_PACK: Final = struct.Struct("<QQIIQ")
# The fields that a pass over all records needs: several times quicker than a whole record.
_INODE_CONTENT: Final = struct.Struct("<I8xIQ24xQ")
_BLOB_USE: Final = struct.Struct("<8xII")
_CHUNK_USE: Final = struct.Struct("<40xII8xI")
_RECIPE_KEY_TAIL: Final = struct.Struct(">Q")
_ENTRY_KEY_TAIL: Final = struct.Struct(">Q")

BLOB_HEADER: Final = _BLOB.size
NO_SHA256: Final = bytes(32)
NO_SHA1: Final = bytes(20)
"""The digests of a blob that has none."""
INLINE_PARTS_MAX: Final = 512
"""Recipes up to this many bytes lie in the blob's own record."""
PARTS_PER_ROW: Final = 128
"""A longer recipe is cut into rows of at most this many parts ..."""
ROW_MAX: Final = 1900
"""... and bytes: LMDB puts longer values on pages of their own."""

# Attr.flags
INODE_PROBED: Final = 1
"""A directory in which some name does not lie at its own hash (a collision)."""

# BlobRecord.flags
BLOB_UNHASHED: Final = 1
"""Content that is still being written: no digests yet, owned by one inode."""
BLOB_ROWS: Final = 2
"""The recipe lies in the recipes database, not in the record."""
BLOB_HOLES: Final = 4
"""The recipe has (or once had) a hole."""
BLOB_AGED: Final = 8
"""Taken apart: the recipe says how to make the bytes from those of *mate*, the inner blob."""
BLOB_INNER: Final = 16
"""The inflated content of the aged blob *mate*; no file has it, and no digest leads to it."""
BLOB_LEFT: Final = 32
"""Was looked at and is left as it is: ageing does not try it again."""
BLOB_NESTED: Final = 64
"""An inner blob that has made parts: what their engines take in lies right behind each stream,
and is not part of what the outer blob is made of."""
BLOB_MATED: Final = BLOB_AGED | BLOB_INNER
"""A record with one of these has *mate*."""

# PackRecord.flags
PACK_SEALED: Final = 1
PACK_EMPTIED: Final = 2
"""Holds nothing that is alive; removed once its grace has passed."""

_COOKIE_MASK: Final = (1 << 63) - 1
FIRST_COOKIE: Final = 3
"""0 is the start of a directory, 1 and 2 are the dot entries."""
DIGEST_PREFIX: Final = 8


class BlobRecord(NamedTuple):
    """A blob: its length, who refers to it, its digests, and its recipe if that is short."""

    size: int
    refs: int
    """Inodes that have it as their content; of an inner blob 1, for its outer one."""
    flags: int
    sha256: bytes
    sha1: bytes
    parts: bytes
    """The encoded recipe, empty when BLOB_ROWS is set."""
    mate: BlobNo = NO_BLOB
    """Of an aged blob the inner one, of an inner blob the outer one."""


class ChunkRecord(NamedTuple):
    """A chunk: where it lies and how many parts of recipes refer to it."""

    sha256: bytes
    extent: Extent
    refs: int


class PackRecord(NamedTuple):
    """A pack as of the last commit."""

    size: int
    """Committed length in bytes; what lies beyond is void."""
    live_bytes: int
    """Stored bytes of the chunks that the index still has in it."""
    live_chunks: int
    flags: int
    emptied_ns: int
    """When its last chunk left, for the grace period; 0 while it has some."""


def u48(number: int) -> bytes:
    """A number as a key: six bytes, big-endian."""
    return number.to_bytes(6, "big")


def from_u48(key: bytes) -> int:
    """The number at the start of a key."""
    return int.from_bytes(key[:6], "big")


def entry_key(parent: Ino, cookie: int) -> bytes:
    """Key of a directory entry."""
    return parent.to_bytes(6, "big") + _ENTRY_KEY_TAIL.pack(cookie)


def entry_cookie(key: bytes) -> int:
    """The cookie in a directory entry's key."""
    return int(_ENTRY_KEY_TAIL.unpack_from(key, 6)[0])


def name_cookie(name: bytes) -> int:
    """Where a name wants to lie in its directory: 63 bits of XXH3, never 0, 1 or 2.

    0 is the start of a directory; 1 and 2 are the dot entries, and NFS servers refuse all
    three as cookies (RFC 7530, section 16.24.4).
    """
    return max(FIRST_COOKIE, xxhash.xxh3_64_intdigest(name) & _COOKIE_MASK)


def next_cookie(cookie: int) -> int:
    """The place after *cookie*, around the end of the range."""
    return FIRST_COOKIE if cookie == _COOKIE_MASK else cookie + 1


def entry_value(ino: Ino, kind: int, name: bytes) -> bytes:
    """Value of a directory entry; *kind* is the d_type."""
    return ino.to_bytes(6, "little") + bytes((kind,)) + name


def split_entry(value: bytes) -> tuple[Ino, int, bytes]:
    """Inode number, d_type and name of a directory entry."""
    return Ino(int.from_bytes(value[:6], "little")), value[6], value[7:]


def pack_inode(attr: Attr) -> bytes:
    """An inode's record."""
    return _INODE.pack(*attr)


def unpack_inode(value: bytes) -> Attr:
    """The inode in a record.  Raises IndexDamagedError for a record of another length."""
    try:
        return Attr._make(_INODE.unpack(value))
    except struct.error as error:
        raise IndexDamagedError(f"an inode record has {len(value)} bytes") from error


def inode_content(value: bytes) -> tuple[int, int, int, int]:
    """Mode, link count, size and *blob* of an inode's record; for passes over all of them."""
    try:
        return _INODE_CONTENT.unpack_from(value)
    except struct.error as error:
        raise IndexDamagedError(f"an inode record has {len(value)} bytes") from error


def pack_blob(blob: BlobRecord) -> bytes:
    """A blob's record."""
    header = _BLOB.pack(blob.size, blob.refs, blob.flags, blob.sha256, blob.sha1)
    if blob.flags & BLOB_MATED:
        return header + _MATE.pack(blob.mate) + blob.parts
    return header + blob.parts


def unpack_blob(value: bytes) -> BlobRecord:
    """The blob in a record.  Raises IndexDamagedError for a record that is too short."""
    try:
        size, refs, flags, sha256, sha1 = _BLOB.unpack_from(value)
        if flags & BLOB_MATED:
            (mate,) = _MATE.unpack_from(value, BLOB_HEADER)
            parts = value[BLOB_HEADER + _MATE.size :]
            return BlobRecord(size, refs, flags, sha256, sha1, parts, BlobNo(mate))
        return BlobRecord(size, refs, flags, sha256, sha1, value[BLOB_HEADER:])
    except struct.error as error:
        raise IndexDamagedError(f"a blob record has {len(value)} bytes") from error


def blob_use(value: bytes) -> tuple[int, int]:
    """Reference count and flags of a blob's record; for passes over all of them."""
    try:
        return _BLOB_USE.unpack_from(value)
    except struct.error as error:
        raise IndexDamagedError(f"a blob record has {len(value)} bytes") from error


def blob_size(value: bytes) -> int:
    """Bytes of the blob in a record; for passes over all of them."""
    return int.from_bytes(value[:8], "little")


def blob_row(value: bytes) -> bytes:
    """The recipe in a blob's record, empty when BLOB_ROWS is set; for passes over all of them."""
    mated = _BLOB_USE.unpack_from(value)[1] & BLOB_MATED
    return value[BLOB_HEADER + _MATE.size if mated else BLOB_HEADER :]


def pack_chunk(chunk: ChunkRecord) -> bytes:
    """A chunk's record; codec and stored length share a word (8 and 24 bits)."""
    extent = chunk.extent
    return _CHUNK.pack(
        chunk.sha256,
        extent.pack,
        extent.offset,
        extent.codec << 24 | extent.stored_length,
        extent.raw_length,
        extent.xxh3,
        chunk.refs,
    )


def unpack_chunk(value: bytes) -> ChunkRecord:
    """The chunk in a record.  Raises IndexDamagedError for a record of another length."""
    try:
        sha256, pack, offset, word, raw, xxh3, refs = _CHUNK.unpack(value)
    except struct.error as error:
        raise IndexDamagedError(f"a chunk record has {len(value)} bytes") from error
    extent = Extent(PackNo(pack), offset, word & 0xFFFFFF, word >> 24, raw, xxh3)
    return ChunkRecord(sha256, extent, refs)


def chunk_use(value: bytes) -> tuple[int, int, int]:
    """Stored length, raw length and references of a chunk; for passes over all of them."""
    try:
        word, raw_length, refs = _CHUNK_USE.unpack_from(value)
    except struct.error as error:
        raise IndexDamagedError(f"a chunk record has {len(value)} bytes") from error
    return word & 0xFFFFFF, raw_length, refs


def pack_pack(pack: PackRecord) -> bytes:
    """A pack's record."""
    return _PACK.pack(*pack)


def unpack_pack(value: bytes) -> PackRecord:
    """The pack in a record.  Raises IndexDamagedError for a record of another length."""
    try:
        return PackRecord._make(_PACK.unpack(value))
    except struct.error as error:
        raise IndexDamagedError(f"a pack record has {len(value)} bytes") from error


def pack_key(number: PackNo) -> bytes:
    """Key of a pack."""
    return number.to_bytes(4, "big")


def recipe_key(blob: BlobNo, start: int) -> bytes:
    """Key of a row of a recipe that begins at byte *start* of the blob."""
    return blob.to_bytes(6, "big") + _RECIPE_KEY_TAIL.pack(start)


def recipe_start(key: bytes) -> int:
    """The first byte that a row of a recipe speaks of."""
    return int(_RECIPE_KEY_TAIL.unpack_from(key, 6)[0])


def digest_key(digest: bytes, number: BlobNo | ChunkNo) -> bytes:
    """Key by which a digest leads to a number: its first 8 bytes, then the number.

    Several numbers may share a prefix: whoever looks up compares the whole digest in the record.
    """
    return digest[:DIGEST_PREFIX] + number.to_bytes(6, "big")


def digest_number(key: bytes) -> int:
    """The number in a digest's key."""
    return int.from_bytes(key[DIGEST_PREFIX:], "big")


def dead_key(kind: bytes, number: int) -> bytes:
    """Key of something that waits for the sweep: kind b"b" (blob) or b"c" (chunk), number."""
    return kind + number.to_bytes(6, "big")


def engine_key(number: int) -> bytes:
    """Key of an engine's record in the database META; numbers begin at 1, without gaps."""
    return b"engine/%05d" % number


def xattr_key(ino: Ino, name: bytes) -> bytes:
    """Key of an extended attribute."""
    return ino.to_bytes(6, "big") + name


def shown_key(database: int, key: bytes) -> str:
    """A key for messages: its number, and what else tells it apart."""
    if database == META:
        return repr(key.decode("ascii", "replace"))
    if database == PACKS:
        return key.hex()
    number = str(from_u48(key))
    if database == XATTRS:
        return f"{number}, {key[6:]!r}"
    return f"{number}, {key[6:].hex()}" if len(key) > 6 else number
