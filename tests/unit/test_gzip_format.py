"""Gzip files of many makers, whole and broken: what comes out lies back to back."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cafs.archives.gzip_format import (
    HEADER_MAX,
    RAW_MAX,
    Begin,
    End,
    Event,
    GzipReader,
    Header,
    Kept,
    Raw,
    Rest,
    header_length,
)
from tests.conftest import ROOT
from tests.unit.engine_samples import text

FIXTURES = ROOT / "tests" / "fixtures"
TRAILER = bytes(8)


class Read(NamedTuple):
    """What came out of a whole file."""

    kept: list[bytes]
    headers: list[Header]
    streams: list[bytes]
    """The complete ones."""
    raw: list[bytes]
    """What they hold."""
    rest: Rest | None


def read(data: bytes, cuts: list[int] | None = None) -> Read:
    """All events, with everything checked that always has to be true."""
    reader = GzipReader()
    events: list[Event] = []
    at = 0
    for cut in [*(cuts or []), len(data)]:
        events += reader.push(data[at : at + cut])
        at = min(len(data), at + cut)
    events += reader.finish()

    result = Read([], [], [], [], None)
    position = 0
    raw: list[bytes] = []
    rest = None
    for event in events:
        assert rest is None, "nothing follows the rest"
        match event:
            case Kept(kept):
                assert data[position:].startswith(kept)
                position += len(kept)
                result.kept.append(kept)
            case Begin(start, header):
                assert start == position
                result.headers.append(header)
                raw = []
            case Raw(some):
                assert 0 < len(some) <= RAW_MAX
                raw.append(some)
            case End(length, raw_length):
                result.streams.append(data[position : position + length])
                result.raw.append(b"".join(raw))
                assert len(result.raw[-1]) == raw_length
                assert zlib.decompress(result.streams[-1], -15) == result.raw[-1]
                position += length
            case Rest(start, reason):
                assert start == position and reason
                rest = event
    assert rest is not None or position == len(data)
    return result._replace(rest=rest)


def member(data: bytes, flags: int = 0, optional: bytes = b"", level: int = 6) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, -15)
    header = struct.pack("<3sBLBB", b"\x1f\x8b\x08", flags, 77, 2, 3)
    trailer = struct.pack("<LL", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    return header + optional + made.compress(data) + made.flush() + trailer


@pytest.mark.parametrize("name", ["gnu-named.tgz", "go.tgz", "npm.tgz", "pigz.gz", "zopfli.tgz"])
def test_files_of_other_makers(name: str) -> None:
    data = (FIXTURES / name).read_bytes()
    found = read(data)
    assert found.rest is None
    assert found.raw == [gzip.decompress(data)]


def test_what_the_headers_say() -> None:
    def header(name: str) -> Header:
        return read((FIXTURES / name).read_bytes()).headers[0]

    assert header("gnu-named.tgz") == Header(xfl=2, os=3, mtime=1_700_000_000, named=True)
    assert header("go.tgz") == Header(xfl=0, os=255, mtime=0, named=False)
    assert header("npm.tgz") == Header(xfl=2, os=255, mtime=0, named=False)


OPTIONAL = {
    "text": (0x01, b""),
    "header checksum": (0x02, b"cc"),
    "extra": (0x04, struct.pack("<H", 300) + bytes(300)),
    "empty extra": (0x04, bytes(2)),
    "name": (0x08, b"file name\0"),
    "comment": (0x10, b"\0"),
    "all": (0x1F, struct.pack("<H", 65535) + bytes(65535) + b"a\0b\0cc"),
}


@pytest.mark.parametrize("which", OPTIONAL)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_optional_fields(which: str, step: int) -> None:
    flags, optional = OPTIONAL[which]
    data = member(b"content", flags, optional)
    found = read(data, [step] * (len(data) // step) if len(data) < 1000 else [step])
    assert found.raw == [b"content"]
    assert found.kept == [data[: 10 + len(optional)], data[-8:]]
    assert found.rest is None


def test_several_members() -> None:
    contents = [text(50_000), b"", b"x", os.urandom(70_000)]
    data = b"".join(member(content) for content in contents)
    found = read(data)
    assert found.raw == contents
    assert found.rest is None


@pytest.mark.parametrize("tail", [b"\0", bytes(10_240), b"\x1f", b"\x1f\x8b\x08", b"text" * 50_000])
def test_trailing_bytes(tail: bytes) -> None:
    data = member(b"content")
    found = read(data + tail)
    assert found.raw == [b"content"]
    assert found.rest is not None
    assert found.rest == Rest(len(data), "trailing bytes")


@pytest.mark.parametrize("length", [0, 1, 5, 9, 10, 11, 40, -9, -8, -1])
def test_a_file_that_is_cut_off(length: int) -> None:
    data = member(text(10_000))[:length]
    found = read(data)
    assert (found.rest is None) is (length == 0)
    assert len(found.streams) == (1 if length in (-8, -1) else 0)


def test_a_stream_that_breaks_in_the_middle() -> None:
    data = bytearray(member(os.urandom(100_000)))
    broken = bytes(data[:50_000]) + b"\xff" * 60_000
    found = read(broken)
    assert found.streams == []
    assert found.rest is not None and found.rest.start == 10


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04",
        b"\x1f\x8b\x09" + bytes(20),
        b"\x1f\x8b\x08\xe0" + bytes(20),
        b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (HEADER_MAX + 20),
        b"\x1f\x8b\x08\x04" + bytes(6) + b"\xff\xff",
        b"\x1f\x9d",
    ],
)
def test_what_is_no_gzip(data: bytes) -> None:
    found = read(data)
    assert found.rest is not None and found.rest.start == 0


def test_a_bomb_comes_out_in_pieces() -> None:
    data = member(bytes(40 << 20), level=9)
    assert len(data) < 50_000
    assert sum(map(len, read(data).raw)) == 40 << 20


def test_a_reader_that_stops_has_little_in_memory() -> None:
    data = member(bytes(40 << 20), level=9)
    events = GzipReader().push(data)
    kinds = [type(next(events)) for _ in range(4)]
    assert kinds == [Kept, Begin, Raw, Raw]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=300), max_size=4),
    st.binary(max_size=40),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 90), max_size=12),
)
def test_any_cut_gives_the_same(
    contents: list[bytes], tail: bytes, length: int, cuts: list[int]
) -> None:
    data = (b"".join(member(each, 0x08, b"name\0") for each in contents) + tail)[: length or None]
    assert read(data, cuts) == read(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 50), max_size=5))
@example(b"", [])
def test_any_bytes_are_read_without_an_error(data: bytes, cuts: list[int]) -> None:
    for start in (b"", b"\x1f\x8b\x08", b"\x1f\x8b\x08\x1f" + bytes(6), member(b"some")[:-8]):
        read(start + data, cuts)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_read_without_an_error(place: int, value: int) -> None:
    data = bytearray((FIXTURES / "gnu-named.tgz").read_bytes())
    data[place % len(data)] = value
    read(bytes(data))


@given(st.binary(max_size=100))
def test_a_header_is_known_by_its_first_bytes(data: bytes) -> None:
    data = b"\x1f\x8b\x08" + data
    length = header_length(data)
    if length > 0:
        assert header_length(data[:length]) == length
        assert all(header_length(data[:shorter]) == 0 for shorter in range(length))


def test_python_reads_the_same(tmp_path: Path) -> None:
    content = text(3_000_000)
    for level in range(10):
        data = gzip.compress(content, level, mtime=0)
        assert read(data, [1 << 16] * 50).raw == [content]
