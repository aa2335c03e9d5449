"""How a chunk's bytes are stored: as they are, or compressed.

Owns the table of codecs and the judgement whether compressing pays.  Knows nothing of packs.
Invariant: ``decode(codec, stored, len(raw)) == raw`` for every pair that ``encode_many`` made,
and ``decode`` never makes more than *raw_length* bytes, whatever it is given.

Why in batches: each call into zstd lets go of the interpreter lock, and taking it back while
the event loop is busy costs up to a switch interval.  One call for sixteen 64 KiB chunks was
measured 7 times faster than sixteen calls beside a busy thread (reading: 10 times), and no
slower without one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

import zstandard

from cafs.errors import ChunkDamagedError

Stored: TypeAlias = bytes | bytearray | memoryview
"""Bytes as they lie in a pack."""

RAW: Final = 0
ZSTD: Final = 1

DEFAULT_LEVEL: Final = 1
SAVING: Final = 16
"""A compressed form is kept when it saves at least one part in this many."""
SAMPLE_FROM: Final = 16 * 1024
"""Shorter chunks are not sampled but compressed: that costs no more than the sample."""
SAMPLE_PIECE: Final = 1024
"""A sample is four pieces of this length, spread over the chunk."""
HEAD_LENGTH: Final = 32
"""Bytes of a blob that :func:`looks_compressed` wants to see."""


class Codec(NamedTuple):
    """One way to store chunks.  A new one is one more entry in :data:`CODECS`."""

    name: str
    encode_many: Callable[[Sequence[memoryview], int], Sequence[Stored]]
    """Chunks and level to stored forms, in the same order."""
    decode: Callable[[Stored, int], bytes]
    """Stored form and raw length to raw bytes; raises ChunkDamagedError, makes no more."""


class _Contexts(threading.local):
    """zstd contexts may not be shared by threads, and cost too much to be made for each call."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        found = self.compressors.get(level)
        if found is None:
            # No content size: the index and the sidecar have it (1 to 3 bytes a chunk).  The
            # frame's magic number stays: leaving it out saves 4 bytes, 0.15 % of what 8 KiB
            # of source code take, but needs libzstd's unstable interface in every reader.
            found = zstandard.ZstdCompressor(
                level=level,
                write_content_size=False,
                write_checksum=False,
                write_dict_id=False,
            )
            self.compressors[level] = found
        return found


_contexts = _Contexts()


def _raw_encode_many(chunks: Sequence[memoryview], _level: int) -> Sequence[Stored]:
    return chunks


def _raw_decode(stored: Stored, _raw_length: int) -> bytes:
    return bytes(stored)


def _zstd_encode_many(chunks: Sequence[memoryview], level: int) -> Sequence[Stored]:
    if not chunks:
        return []
    # threads=0 is "in this thread"; the lock is let go once for all of them.
    packed = _contexts.compressor(level).multi_compress_to_buffer(list(chunks), threads=0)
    # Copied, because one stored form would keep the memory of all alive.
    return [packed[number].tobytes() for number in range(len(packed))]


def _zstd_decode(stored: Stored, raw_length: int) -> bytes:
    try:
        # A size in the frame's header would be believed and allocated, so it is read first.
        if zstandard.frame_content_size(stored) not in (-1, raw_length) or not raw_length:
            raise ChunkDamagedError(f"a zstd frame is not one of {raw_length} bytes")
        return _contexts.decompressor.decompress(
            stored, max_output_size=raw_length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ChunkDamagedError(f"a zstd frame of {raw_length} bytes: {error}") from error


CODECS: Final[dict[int, Codec]] = {
    RAW: Codec("raw", _raw_encode_many, _raw_decode),
    ZSTD: Codec("zstd", _zstd_encode_many, _zstd_decode),
}


def encode_many(
    chunks: Sequence[memoryview],
    level: int = DEFAULT_LEVEL,
    compressible: bool = True,
) -> list[tuple[int, Stored]]:
    """The codec and stored bytes of each chunk, in order.

    *level* is zstd's.  *compressible* False stores all as they are, without a look at them.
    A stored form is either the chunk itself (the caller's memory, not a copy) or a read-only
    buffer of its own.  Any thread; blocks for as long as compressing takes, mostly without
    the interpreter lock.
    """
    stored: list[tuple[int, Stored]] = [(RAW, chunk) for chunk in chunks]
    if not compressible:
        return stored
    tried = worth_trying(chunks)
    forms = _zstd_encode_many([chunks[number] for number in tried], level)
    for number, form in zip(tried, forms, strict=True):
        raw_length = chunks[number].nbytes
        if (raw_length - len(form)) * SAVING >= raw_length:
            stored[number] = (ZSTD, form)
    return stored


def decode(codec: int, stored: Stored, raw_length: int) -> bytes:
    """The raw bytes of a chunk.

    Raises ChunkDamagedError when *codec* is unknown or *stored* is not the stored form of
    exactly *raw_length* bytes.  Any thread.
    """
    entry = CODECS.get(codec)
    if entry is None:
        raise ChunkDamagedError(f"a chunk is stored with the unknown codec {codec}")
    raw = entry.decode(stored, raw_length)
    if len(raw) != raw_length:
        raise ChunkDamagedError(f"a chunk has {len(raw)} bytes instead of {raw_length}")
    return raw


def worth_trying(chunks: Sequence[memoryview]) -> list[int]:
    """Positions of those that compressing may pay for, by a sample of 4 KiB of each.

    Random and deflated bytes: no.  Anything short, and anything a quarter of which is text: yes.
    """
    sampled = [number for number, chunk in enumerate(chunks) if chunk.nbytes >= SAMPLE_FROM]
    if not sampled:
        return list(range(len(chunks)))
    samples = [_sample(chunks[number]) for number in sampled]
    # Counting byte values in Python was measured slower than compressing the sample, and takes
    # binaries for noise.  libzstd stores a block as it is unless it gains 1/64 of it, so that
    # "shrinks at all" is a clear answer: random bytes never do.
    forms = _zstd_encode_many(samples, DEFAULT_LEVEL)
    hopeless = {
        number
        for number, sample, form in zip(sampled, samples, forms, strict=True)
        if len(form) >= len(sample)
    }
    return [number for number in range(len(chunks)) if number not in hopeless]


def _sample(chunk: memoryview) -> memoryview:
    step = (chunk.nbytes - SAMPLE_PIECE) // 3
    pieces = (chunk[start : start + SAMPLE_PIECE] for start in (0, step, 2 * step, 3 * step))
    return memoryview(b"".join(pieces))


# How the formats that are compressed already begin.  Sources: the RFC or standard of each.
_MAGIC_AT_START: Final = (
    b"\x1f\x8b\x08",  # gzip: RFC 1952, 2.3
    b"\x78\x9c",  # zlib, default level: RFC 1950, 2.2
    b"\x78\xda",  # zlib, best level
    b"PK\x03\x04",  # zip: APPNOTE 4.3.7, local file header
    b"\x28\xb5\x2f\xfd",  # zstd: RFC 8878, 3.1.1
    b"\xfd7zXZ\x00",  # xz: The .xz File Format, 2.1.1.1
    b"LZIP",  # lzip: its manual, "File format"
    b"\x04\x22\x4d\x18",  # lz4: LZ4 Frame Format, magic number
    b"7z\xbc\xaf\x27\x1c",  # 7z: 7zFormat.txt, signature header
    b"Rar!\x1a\x07",  # RAR 1.5 and 5
    b"\xff\xd8\xff",  # JPEG: ITU-T T.81, B.1.1.3 (SOI, then a marker)
    b"\x89PNG\r\n\x1a\n",  # PNG: RFC 2083, 3.1
    b"GIF87a",
    b"GIF89a",
    b"OggS",  # Ogg: RFC 3533, 6
    b"fLaC",  # FLAC: RFC 9639, 6
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM: RFC 8794, 11.2.1 (EBML)
    b"ID3",  # MP3 with a tag
    b"wOFF",  # WOFF 1.0: W3C recommendation, 3
    b"wOF2",  # WOFF 2.0: W3C recommendation, 4.1
    b"\xed\xab\xee\xdb",  # RPM: lead
    b"!<arch>\ndebian-binary",  # Debian package: deb(5)
)
_BZIP2_BLOCK: Final = b"1AY&SY"


def looks_compressed(head: bytes) -> bool:
    """Whether a blob that begins with *head* is of a format that compresses by itself.

    *head* is the blob's first :data:`HEAD_LENGTH` bytes, or all of it if it is shorter.
    A wrong yes costs space, a wrong no costs a sample per chunk; never correctness.
    """
    if head.startswith(_MAGIC_AT_START):
        return True
    if head.startswith(b"BZh") and head[4:10] == _BZIP2_BLOCK:
        return True
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":  # RFC 9649, 2.4
        return True
    # MP4, MOV, HEIC, AVIF: ISO/IEC 14496-12, 4.3: a box length, then its type.
    return head[4:8] == b"ftyp"
