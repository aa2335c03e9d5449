"""The native cuts: golden vectors, the oracle, and what must hold for any content."""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs import _chunker
from cafs.blobs.chunker import (
    GEAR,
    MAX_SIZE,
    WINDOW,
    ChunkParams,
    _rolling_hashes,
    reference_split,
    sha256_each,
    split,
)
from cafs.errors import ConfigError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "chunker.json"
SMALL = ChunkParams(min_size=512, avg_size=4096, max_size=12_000)
LOCAL_HEADER = b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(16) + b"\x05\0\x03\0hello\1\2\3"


def stream(seed: str, size: int) -> bytes:
    """Random-looking bytes that are the same everywhere and for ever."""
    return hashlib.shake_128(seed.encode()).digest(size)


def golden_data(seed: str, size: int) -> bytes:
    """Random bytes, a run of zeros, text, and zip signatures at irregular places."""
    data = bytearray(stream(seed, size))
    data[size // 4 : size // 3] = bytes(size // 3 - size // 4)
    text = b"The quick brown fox jumps over the lazy dog. " * (size // 300)
    data[size // 2 : size // 2 + len(text)] = text
    marks = (LOCAL_HEADER, b"PK\x07\x08", b"PK\x01\x02", b"PK\x01\x02", b"PK\x03\x04")
    at = 1000
    for step, mark in enumerate(itertools.islice(itertools.cycle(marks), 200)):
        if at + len(mark) <= size:
            data[at : at + len(mark)] = mark
        at += 37 + step * step * 7
    return bytes(data)


def pieces_of(data: bytes, ends: list[int]) -> list[memoryview]:
    return [memoryview(data)[a:b] for a, b in itertools.pairwise([0, *ends])]


def golden_cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["cases"]
    return cases


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: str(case["name"]))
def test_golden_vectors_never_change(case: dict[str, Any]) -> None:
    data = golden_data(case["seed"], case["size"])
    params = ChunkParams(case["min"], case["avg"], case["max"], case["zip_members"])
    ends = split(data, params, final=True)
    digests = sha256_each(pieces_of(data, ends))
    assert ends[:4] == case["first_ends"]
    assert len(ends) == case["slices"]
    joined = b"".join(end.to_bytes(4, "little") for end in ends)
    assert hashlib.sha256(joined).hexdigest() == case["sha256_of_ends"]
    assert hashlib.sha256(digests).hexdigest() == case["sha256_of_digests"]


def test_gear_table_follows_its_rule() -> None:
    text = (ROOT / "native" / "chunker" / "gear_table.h").read_text()
    written = re.findall(r"UINT64_C\((0x[0-9a-f]{16})\)", text)
    rule = [hashlib.sha256(bytes([value])).digest()[:8] for value in range(256)]
    assert [int(value, 16) for value in written] == [int.from_bytes(x, "little") for x in rule]
    assert list(GEAR) == [int(value, 16) for value in written]


# Pieces that meet every branch: content that cuts, content that never does, and signatures
# whole, cut short and doubled.
pieces = st.one_of(
    st.tuples(st.text("ab", max_size=2), st.integers(0, 9000)).map(lambda t: stream(*t)),
    st.integers(0, 9000).map(bytes),
    st.integers(1, len(LOCAL_HEADER)).map(lambda size: LOCAL_HEADER[:size]),
    st.sampled_from([b"PK\x01\x02", b"PK\x07\x08", b"PK\x05\x06", b"PK\x03", b"PK", b"P"]),
    st.binary(max_size=40),
    st.tuples(st.integers(0, 29), st.integers(0, 255)).map(
        lambda t: LOCAL_HEADER[: t[0]] + bytes([t[1]]) + LOCAL_HEADER[t[0] + 1 :]
    ),
)
contents = st.lists(pieces, max_size=8).map(b"".join)
small_params = st.builds(
    ChunkParams,
    min_size=st.sampled_from([64, 65, 700, 4096]),
    avg_size=st.just(4096),
    max_size=st.sampled_from([4096, 4097, 12_000]),
    zip_members=st.booleans(),
)


@given(contents, small_params, st.booleans())
@settings(max_examples=150, deadline=None)
def test_kernel_equals_oracle(data: bytes, params: ChunkParams, final: bool) -> None:
    assert split(data, params, final) == reference_split(data, params, final)


def split_in_pieces(data: bytes, params: ChunkParams, sizes: Iterable[int]) -> list[int]:
    """The ends when the bytes arrive in pieces of the given sizes, then the remainder."""
    ends: list[int] = []
    rest, begin, arrived = b"", 0, 0
    bounds = [*itertools.takewhile(lambda x: x < len(data), itertools.accumulate(sizes)), len(data)]
    for bound in bounds:
        fresh = data[arrived:bound]
        arrived = bound
        found = split(fresh, params, final=bound == len(data), left=rest)
        ends += [begin + end for end in found]
        rest += fresh
        if found:
            rest, begin = rest[found[-1] :], begin + found[-1]
        assert len(rest) < params.max_size + 30
    return ends


@given(contents, small_params, st.lists(st.integers(1, 5000), max_size=30))
@settings(max_examples=300, deadline=None)
def test_cuts_do_not_depend_on_how_bytes_arrive(
    data: bytes, params: ChunkParams, sizes: list[int]
) -> None:
    assert split_in_pieces(data, params, sizes) == split(data, params, final=True)


@given(contents)
@settings(max_examples=20, deadline=None)
def test_cuts_do_not_depend_on_single_bytes(data: bytes) -> None:
    data = data[-6000:]
    assert split_in_pieces(data, SMALL, [1] * len(data)) == split(data, SMALL, final=True)


@given(contents, small_params, st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_any_cut_is_a_place_to_start_anew(data: bytes, params: ChunkParams, which: int) -> None:
    ends = split(data, params, final=True)
    if ends:
        which %= len(ends)
        begin = ends[which]
        again = split(memoryview(data)[begin:], params, final=True)
        assert [begin + end for end in again] == ends[which + 1 :]


@given(contents, small_params, st.booleans())
@settings(max_examples=100, deadline=None)
def test_bounds_hold(data: bytes, params: ChunkParams, final: bool) -> None:
    params = replace(params, zip_members=False)
    ends = split(data, params, final)
    lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
    assert all(params.min_size <= length <= params.max_size for length in lengths[:-1])
    assert all(0 < length <= params.max_size for length in lengths[-1:])
    if final:
        assert [*ends[-1:]] == [len(data)] * bool(data)


def test_cuts_come_at_the_very_position() -> None:
    """At min_size the window is whole; from avg_size on, not before, cuts are frequent."""
    params = ChunkParams(min_size=1024, avg_size=4096, max_size=8192, zip_members=False)
    data = stream("position", 500_000)
    hashes = _rolling_hashes(data)
    rare = [at for at in range(9000, len(data)) if hashes[at] >> (64 - 14) == 0]
    frequent = [at for at in range(9000, len(data)) if hashes[at] >> (64 - 10) == 0]
    assert len(rare) > 15
    for at in rare:
        assert split(data[at - 1024 : at], params, final=False) == [1024]
        assert split(data[at - 1024 : at + 5000], params, final=False)[0] == 1024
        assert split(data[at - 1023 : at], params, final=False) == []
        # The oldest byte of the window counts.
        oldest = at - WINDOW
        other = next(value for value in range(256) if (GEAR[value] ^ GEAR[data[oldest]]) & 1)
        changed = data[at - 1024 : oldest] + bytes([other]) + data[oldest + 1 : at]
        assert split(changed, params, final=False) == []
    alone = [
        at
        for at in frequent
        if hashes[at] >> (64 - 14) and all(h >> (64 - 14) for h in hashes[at - 4096 : at])
    ]
    assert len(alone) > 100
    for at in alone[:100]:
        assert split(data[at - 4096 : at], params, final=False) == [4096]
        assert split(data[at - 4095 : at], params, final=False) == []


def test_an_edit_moves_only_the_cuts_beside_it() -> None:
    params = ChunkParams()
    data = stream("edit", 8 << 20)
    edited = data[: 3 << 20] + b"a few inserted bytes" + data[3 << 20 :]

    def chunks(content: bytes) -> set[bytes]:
        return {bytes(piece) for piece in pieces_of(content, split(content, params, final=True))}

    assert len(chunks(data)) > 80
    assert len(chunks(edited) - chunks(data)) <= 3


def test_sizes_are_spread_as_normalized_chunking_says() -> None:
    params = ChunkParams(min_size=1024, avg_size=4096, max_size=16_384)
    ends = split(stream("spread", 16 << 20), params, final=True)
    lengths = sorted(end - start for start, end in itertools.pairwise([0, *ends]))
    count = len(lengths)
    assert 4096 < sum(lengths) / count < 4096 * 1.25
    # Half of the lengths lie within a third of the middle one; without normalization it is
    # under a third of them.
    middle = lengths[count // 2]
    near = sum(2 * middle / 3 <= length <= 4 * middle / 3 for length in lengths)
    assert near > count / 2
    assert sum(length == params.max_size for length in lengths) < count / 1000
    assert sum(length < params.avg_size for length in lengths) < count / 3


def test_constant_content_is_cut_at_the_maximum() -> None:
    assert split(bytes(50_000), SMALL, final=True) == [12_000, 24_000, 36_000, 48_000, 50_000]


def test_empty_content_has_no_slice() -> None:
    assert split(b"", SMALL, final=True) == []
    assert split(b"", SMALL, final=False) == []


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_takes_any_buffer(kind: type) -> None:
    data = stream("buffer", 50_000)
    assert split(kind(data), SMALL, True) == split(data, SMALL, True)


def test_refuses_what_is_not_a_flat_buffer() -> None:
    with pytest.raises(TypeError):
        split("text", SMALL, True)  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        split(memoryview(b"abcdef")[::2], SMALL, True)


def test_refuses_more_than_it_can_count() -> None:
    with mmap.mmap(-1, 2**31 + 1) as data:
        with pytest.raises(ValueError, match="2\\^31"):
            split(data, SMALL, True)
        with pytest.raises(ValueError, match="2\\^31"):
            split(b"", SMALL, True, data)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (ChunkParams(512, 2048, 4096), "avg_size"),
        (ChunkParams(512, 8 << 20, 16 << 20), "avg_size"),
        (ChunkParams(512, 5000, 8192), "avg_size"),
        (ChunkParams(512, 0, 8192), "avg_size"),
        (ChunkParams(512, -4096, 8192), "avg_size"),
        (ChunkParams(63, 4096, 8192), "min_size"),
        (ChunkParams(4097, 4096, 8192), "min_size"),
        (ChunkParams(-1, 4096, 8192), "min_size"),
        (ChunkParams(512, 4096, 4095), "max_size"),
        (ChunkParams(512, 4096, MAX_SIZE + 1), "max_size"),
    ],
)
def test_sizes_out_of_bounds_are_refused(params: ChunkParams, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        params.validate()
    with pytest.raises(ValueError, match=named):
        split(b"content", params, True)


@pytest.mark.parametrize(
    "params",
    [ChunkParams(), ChunkParams(64, 4096, 4096), ChunkParams(4 << 20, 4 << 20, MAX_SIZE), SMALL],
)
def test_sizes_at_the_bounds_are_taken(params: ChunkParams) -> None:
    params.validate()
    assert split(b"content", params, True) == [7]


KERNELS = ["auto", *_chunker.sha256_kernels()]


@pytest.mark.parametrize("kernel", KERNELS)
def test_sha256_of_every_short_length(kernel: str) -> None:
    data = stream("digest", 300 * 301 // 2)
    ends = list(itertools.accumulate(range(301)))
    expected = [hashlib.sha256(data[a:b]).digest() for a, b in itertools.pairwise([0, *ends])]
    assert _chunker.sha256_each(pieces_of(data, ends), kernel=kernel) == b"".join(expected)
    for length in range(301):
        alone = _chunker.sha256_each([data[:length]], kernel=kernel)
        assert alone == hashlib.sha256(data[:length]).digest()


@given(
    st.sampled_from(KERNELS),
    st.lists(st.one_of(st.integers(0, 300), st.integers(0, 20_000)), max_size=40),
    st.binary(),
)
@settings(max_examples=200, deadline=None)
def test_sha256_of_many_slices(kernel: str, lengths: list[int], salt: bytes) -> None:
    ends = list(itertools.accumulate(lengths))
    data = hashlib.shake_128(salt).digest(ends[-1] if ends else 0)
    expected = [hashlib.sha256(data[a:b]).digest() for a, b in itertools.pairwise([0, *ends])]
    assert _chunker.sha256_each(pieces_of(data, ends), kernel=kernel) == b"".join(expected)


def test_a_kernel_that_cannot_run_is_refused() -> None:
    assert "openssl" in KERNELS
    with pytest.raises(ValueError, match="mmx"):
        _chunker.sha256_each([], kernel="mmx")


@pytest.mark.parametrize("buffers", [7, ["text"], [b"one", None]])
def test_sha256_refuses_what_is_no_sequence_of_buffers(buffers: Any) -> None:
    with pytest.raises(TypeError):
        sha256_each(buffers)


def test_other_threads_run_while_it_works() -> None:
    data = stream("thread", 1 << 20) * 64
    span: list[float] = []

    def work() -> None:
        span.append(time.monotonic())
        split(data, ChunkParams(), True)
        span.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    ticks = []
    while thread.is_alive():
        ticks.append(time.monotonic())
    begin, end = span
    quarter = (end - begin) / 4
    assert any(begin + quarter < tick < end - quarter for tick in ticks)
