"""Runs of stored chunks, read and verified by the native module, on real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs import _fetch
from cafs.blobs import codec
from cafs.blobs.codec import RAW, ZSTD
from cafs.blobs.pack import StoredForm

HEAD = b"what comes before the run"
TEXT = b"".join(b"line %d of some text\n" % number for number in range(400))


class Run(NamedTuple):
    stored: bytes
    chunks: list[StoredForm]


def run_of(*raws: bytes, forms: list[tuple[int, bytes]] | None = None) -> Run:
    encoded = forms or [
        (kind, bytes(stored))
        for kind, stored in codec.encode_many([memoryview(raw) for raw in raws])
    ]
    return Run(
        b"".join(stored for _, stored in encoded),
        [
            (len(stored), kind, len(raw), xxhash.xxh3_64_intdigest(stored))
            for raw, (kind, stored) in zip(raws, encoded, strict=True)
        ],
    )


def read(path: Path, run: Run, *, cut: int | None = None, nowait: bool = False) -> bytes | None:
    path.write_bytes(HEAD + run.stored[:cut])
    fd = os.open(path, os.O_RDONLY)
    try:
        return _fetch.read_run(fd, len(HEAD), run.chunks, nowait)
    finally:
        os.close(fd)


@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=300),
            st.integers(1, len(TEXT)).map(lambda length: TEXT[:length]),
            st.integers(1, 70_000).map(os.urandom),
        ),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_what_was_stored_is_read(
    tmp_path_factory: pytest.TempPathFactory, raws: list[bytes], nowait: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "run"
    found = read(path, run_of(*raws), nowait=nowait)
    # Whether it would wait is the kernel's word; what it gives is right in any case.
    assert found == b"".join(raws) or (nowait and found is None)


def test_the_chunk_that_is_to_blame_is_named(tmp_path: Path) -> None:
    run = run_of(b"one", TEXT, b"three")
    for place in range(3):
        at = sum(chunk[0] for chunk in run.chunks[:place])
        stored = bytearray(run.stored)
        stored[at] ^= 1
        with pytest.raises(_fetch.BadChunk) as caught:
            read(tmp_path / "run", Run(bytes(stored), run.chunks))
        assert caught.value.args[0] == place
        with pytest.raises(_fetch.BadChunk) as caught:
            read(tmp_path / "run", run, cut=at + 1)
        assert caught.value.args[0] == place


def bomb() -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj(size=1 << 40)
    return compressor.compress(bytes(1 << 20)) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


FRAME = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)


@pytest.mark.parametrize(
    ("kind", "stored", "length"),
    [
        (ZSTD, FRAME, len(TEXT) - 1),
        (ZSTD, FRAME, len(TEXT) + 1),
        (ZSTD, FRAME[:-1], len(TEXT)),
        (ZSTD, FRAME + b"x", len(TEXT)),
        (ZSTD, FRAME + FRAME, 2 * len(TEXT)),
        (ZSTD, zstandard.ZstdCompressor().compress(bytes(1 << 20)), 5000),
        (ZSTD, bomb(), 65536),
        (ZSTD, b"no frame at all", 15),
        (RAW, b"abc", 4),
        (7, b"abc", 3),
    ],
)
def test_stored_forms_that_are_not_what_the_index_says(
    tmp_path: Path, kind: int, stored: bytes, length: int
) -> None:
    run = run_of(b"one", bytes(length), forms=[(RAW, b"one"), (kind, stored)])
    with pytest.raises(_fetch.BadChunk) as caught:
        read(tmp_path / "run", run)
    assert caught.value.args[0] == 1


def test_faults_of_the_disk_are_its_own() -> None:
    chunks = run_of(b"one").chunks
    with pytest.raises(OSError, match="Bad file descriptor"):
        _fetch.read_run(-1, 0, chunks, False)
    directory = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            _fetch.read_run(directory, 0, chunks, False)
    finally:
        os.close(directory)


@pytest.mark.parametrize(
    "chunk", [(0, RAW, 0, 0), (-1, RAW, -1, 0), (1 << 32, RAW, 1 << 32, 0), (1, ZSTD, 1 << 32, 0)]
)
def test_lengths_out_of_bounds_are_refused(chunk: StoredForm) -> None:
    with pytest.raises(ValueError, match="2\\^31"):
        _fetch.read_run(0, 0, [chunk], False)


def read_all(path: Path, pieces: list[bytes | Run], *, nowait: bool = False) -> bytes | None:
    """Runs lie in the file in the opposite order."""
    stored = HEAD
    places = {}
    for index, piece in reversed(list(enumerate(pieces))):
        if isinstance(piece, Run):
            places[index] = len(stored)
            stored += piece.stored
    path.write_bytes(stored)
    fd = os.open(path, os.O_RDONLY)
    try:
        asked = [
            (fd, places[index], piece.chunks) if isinstance(piece, Run) else piece
            for index, piece in enumerate(pieces)
        ]
        return _fetch.read_pieces(asked, nowait)
    finally:
        os.close(fd)


def test_pieces_come_one_behind_the_other(tmp_path: Path) -> None:
    noise = os.urandom(50_000)
    pieces: list[bytes | Run] = [
        b"",
        b"before",
        run_of(TEXT, noise),
        run_of(noise),
        b"between",
        run_of(b"x"),
        b"",
    ]
    expected = b"before" + TEXT + noise + noise + b"betweenx"
    assert read_all(tmp_path / "runs", pieces) == expected
    assert read_all(tmp_path / "runs", pieces, nowait=True) in (None, expected)
    assert _fetch.read_pieces([], False) == b""
    assert _fetch.read_pieces((b"a", (-1, 0, []), b"b"), False) == b"ab"


def test_the_chunk_to_blame_is_counted_over_all_pieces(tmp_path: Path) -> None:
    first, second = run_of(b"one", TEXT), run_of(b"three", b"four")
    stored = bytearray(second.stored)
    stored[-1] ^= 1
    broken = Run(bytes(stored), second.chunks)
    with pytest.raises(_fetch.BadChunk) as caught:
        read_all(tmp_path / "runs", [first, b"between", broken, first])
    assert caught.value.args == (3, "do not match their checksum")
    unknown = Run(b"abc", [(3, 7, 3, 0)])
    with pytest.raises(_fetch.BadChunk) as caught:
        read_all(tmp_path / "runs", [first, b"between", unknown])
    assert caught.value.args[0] == 2


def test_pieces_that_are_none_are_refused() -> None:
    huge = (0, 0, [(1, ZSTD, (1 << 31) - 1, 0)])
    with pytest.raises(ValueError, match="2\\^31"):
        _fetch.read_pieces([huge, b"ab"], False)
    with pytest.raises(TypeError, match="piece"):
        _fetch.read_pieces([bytearray(b"a")], False)  # type: ignore[list-item]
    with pytest.raises(TypeError):
        _fetch.read_pieces([(0, 0)], False)  # type: ignore[list-item]
    with pytest.raises(OSError, match="Bad file descriptor"):
        _fetch.read_pieces([b"a", (-1, 0, run_of(b"one").chunks)], False)
