"""Codecs: what was encoded comes back, what is damaged does not, and noise is not compressed."""

import bz2
import gzip
import io
import lzma
import os
import random
import threading
import zipfile
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cafs.blobs import codec
from cafs.blobs.codec import RAW, SAMPLE_FROM, ZSTD
from cafs.errors import ChunkDamagedError

WORDS = [b"def ", b"self", b"return ", b"(", b")", b":\n    ", b"import ", b"None", b" = ", b"x"]


def text(length: int, seed: int = 1) -> bytes:
    """Something that compresses about as source code does."""
    source = random.Random(seed)
    return b"".join(source.choices(WORDS, k=length))[:length]


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def encode(*chunks: bytes, compressible: bool = True) -> list[tuple[int, codec.Stored]]:
    return codec.encode_many([memoryview(chunk) for chunk in chunks], compressible=compressible)


pieces = st.builds(
    lambda make, length, seed: make(length, seed),
    st.sampled_from([text, noise]),
    st.sampled_from([1, 15, 16, 300, SAMPLE_FROM - 1, SAMPLE_FROM, 65536]),
    st.integers(0, 9),
)


@given(st.lists(pieces | st.binary(min_size=1, max_size=100), max_size=6))
def test_round_trip(chunks: list[bytes]) -> None:
    forms = encode(*chunks)
    assert len(forms) == len(chunks)
    for chunk, (kind, stored) in zip(chunks, forms, strict=True):
        assert codec.decode(kind, stored, len(chunk)) == chunk
        assert kind == RAW or (len(chunk) - len(stored)) * codec.SAVING >= len(chunk)


def test_text_is_compressed_and_noise_is_not() -> None:
    kinds = [kind for kind, _ in encode(text(65536), noise(65536), text(500), noise(500))]
    assert kinds == [ZSTD, RAW, ZSTD, RAW]


def test_raw_is_the_callers_memory_and_not_a_copy() -> None:
    chunk = memoryview(noise(65536))
    [(kind, stored)] = codec.encode_many([chunk])
    assert (kind, stored is chunk) == (RAW, True)


def test_a_blob_that_does_not_compress_is_not_tried() -> None:
    assert encode(text(65536), compressible=False) == [(RAW, text(65536))]


@pytest.mark.parametrize("length", [SAMPLE_FROM, SAMPLE_FROM + 1, 65536, 262144])
def test_a_sample_finds_text_in_a_quarter(length: int) -> None:
    quarter = length // 4
    for place in range(4):
        chunk = bytearray(noise(length))
        chunk[place * quarter : (place + 1) * quarter] = text(quarter)
        assert codec.worth_trying([memoryview(chunk)]), place


def test_a_sample_gives_up_on_noise_and_deflate() -> None:
    deflated = zlib.compress(os.urandom(1) + text(4 << 20))
    chunks = [noise(65536, seed) for seed in range(50)]
    chunks += [deflated[start : start + 65536] for start in range(0, len(deflated) - 65536, 65536)]
    assert not codec.worth_trying([memoryview(chunk) for chunk in chunks])


def test_what_barely_shrinks_is_left_alone() -> None:
    chunk = noise(10000) + bytes(500)
    assert [kind for kind, _ in encode(chunk)] == [RAW]
    assert [kind for kind, _ in encode(chunk + bytes(500))] == [ZSTD]


def test_frames_have_no_size_and_no_checksum() -> None:
    [(_, stored)] = encode(text(5000))
    parameters = zstandard.get_frame_parameters(bytes(stored))
    assert parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN
    assert (parameters.has_checksum, parameters.dict_id) == (False, 0)


def frame_with_size(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=True).compress(raw)


FRAME = bytes(encode(text(5000))[0][1])


@pytest.mark.parametrize(
    ("kind", "stored", "raw_length"),
    [
        (ZSTD, FRAME, 4999),
        (ZSTD, FRAME, 5001),
        (ZSTD, FRAME, 0),
        (ZSTD, FRAME[:-1], 5000),
        (ZSTD, FRAME + b"\0", 5000),
        (ZSTD, b"", 5000),
        (ZSTD, b"no frame at all", 5000),
        (ZSTD, frame_with_size(bytes(1 << 20)), 5000),
        (ZSTD, b"\x50\x2a\x4d\x18\x04\0\0\0skip", 4),
        (RAW, b"abc", 4),
        (RAW, b"abc", 2),
        (2, b"abc", 3),
        (255, b"abc", 3),
    ],
)
def test_damage(kind: int, stored: bytes, raw_length: int) -> None:
    with pytest.raises(ChunkDamagedError):
        codec.decode(kind, stored, raw_length)


def test_a_frame_that_would_fill_the_memory_is_refused_before_it_does() -> None:
    compressor = zstandard.ZstdCompressor().compressobj(size=1 << 40)
    bomb = compressor.compress(bytes(1 << 20)) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with pytest.raises(ChunkDamagedError, match="not one of 65536 bytes"):
        codec.decode(ZSTD, bomb, 65536)


@given(st.data())
def test_flipped_bytes_never_crash(data: st.DataObject) -> None:
    frame = bytearray(FRAME)
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert len(codec.decode(ZSTD, frame, 5000)) == 5000
    except ChunkDamagedError:
        pass


def test_threads_do_not_share_contexts() -> None:
    chunks = [text(20000, seed) for seed in range(8)]
    failures = []

    def work() -> None:
        for _ in range(10):
            forms = encode(*chunks)
            back = [
                codec.decode(kind, stored, len(chunk))
                for chunk, (kind, stored) in zip(chunks, forms, strict=True)
            ]
            if back != chunks:
                failures.append(back)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def zipped(method: int) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.writestr("name", text(1000))
    return target.getvalue()


def first_bytes(head: bytes) -> str:
    """The same name each time: what follows may hold the time at which it was compressed."""
    return head[:4].hex()


@pytest.mark.parametrize(
    "head",
    [
        gzip.compress(text(100)),
        zlib.compress(text(100)),
        zlib.compress(text(100), 9),
        bz2.compress(text(100)),
        lzma.compress(text(100)),
        FRAME,
        zipped(zipfile.ZIP_DEFLATED),
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"GIF89a",
        b"RIFF\x24\x10\0\0WEBPVP8 ",
        b"\0\0\0\x20ftypisom",
        b"7z\xbc\xaf\x27\x1c\0\x04",
        b"wOF2\0\x01\0\0",
        b"wOFF\0\x01\0\0",
        b"\x04\x22\x4d\x18\x64\x40",
        b"OggS\0\x02",
        b"!<arch>\ndebian-binary   ",
    ],
    ids=first_bytes,
)
def test_compressed_formats_are_recognised(head: bytes) -> None:
    assert codec.looks_compressed(head[: codec.HEAD_LENGTH])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"P",
        text(32),
        b"#!/bin/sh\n",
        b"\x7fELF\x02\x01\x01",
        b"BZh is how this text begins",
        b"x^2 + 1",
        b"RIFF\x24\x10\0\0WAVEfmt ",
        b"%PDF-1.7",
        b"<?xml version='1.0'?>",
        b"!<arch>\n/               ",
        "\u00ff\u00d8".encode(),
        bytes(32),
    ],
    ids=first_bytes,
)
def test_other_formats_are_not(head: bytes) -> None:
    assert not codec.looks_compressed(head)
