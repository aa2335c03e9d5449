"""Sidecars: records come back, and a torn tail costs only what it tore."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafs.blobs import fileheader, sidecar
from cafs.blobs.fileheader import PACK_MAGIC, SIDECAR_MAGIC, FileHeader
from cafs.blobs.sidecar import RECORD_LENGTH, SidecarRecord, read_sidecar
from cafs.errors import DamagedError, DiskError, NotFoundError, StoreVersionError
from cafs.types import PackNo

HEADER = FileHeader(PackNo(7), b"0123456789abcdef")

records = st.builds(
    SidecarRecord,
    sha256=st.binary(min_size=32, max_size=32),
    offset=st.integers(32, (1 << 32) - 1),
    stored_length=st.integers(0, (1 << 24) - 1),
    codec=st.integers(0, 255),
    raw_length=st.integers(0, (1 << 32) - 1),
    xxh3=st.integers(0, (1 << 64) - 1),
)


def record(number: int) -> SidecarRecord:
    return SidecarRecord(number.to_bytes(4, "big") * 8, 32 + 100 * number, 100, 1, 300, number)


def written(path: Path, count: int) -> Path:
    body = b"".join(sidecar.encode_record(record(number)) for number in range(count))
    path.write_bytes(fileheader.encode(SIDECAR_MAGIC, HEADER) + body)
    return path


@given(records)
def test_round_trip_of_a_record(one: SidecarRecord) -> None:
    data = sidecar.encode_record(one)
    assert len(data) == RECORD_LENGTH == 64
    assert sidecar.decode_record(data) == one


@given(records, st.integers(0, 63), st.integers(1, 255))
def test_any_flipped_byte_is_noticed(one: SidecarRecord, at: int, flip: int) -> None:
    data = bytearray(sidecar.encode_record(one))
    data[at] ^= flip
    assert sidecar.decode_record(bytes(data)) is None


@pytest.mark.parametrize("data", [b"", bytes(63), bytes(64), bytes(65)])
def test_what_is_no_record(data: bytes) -> None:
    assert sidecar.decode_record(data) is None


@pytest.mark.parametrize(
    "one",
    [
        record(0)._replace(offset=1 << 32),
        record(0)._replace(stored_length=1 << 24),
        record(0)._replace(codec=256),
        record(0)._replace(raw_length=1 << 32),
        record(0)._replace(xxh3=1 << 64),
    ],
)
def test_values_that_do_not_fit_are_refused(one: SidecarRecord) -> None:
    with pytest.raises((ValueError, struct.error)):
        sidecar.encode_record(one)


def test_reading_a_whole_file(tmp_path: Path) -> None:
    side = read_sidecar(written(tmp_path / "side", 20000))
    assert side.header == HEADER
    assert [one.xxh3 for one in side] == list(range(20000))
    assert (side.torn, side.good_length) == (None, 32 + 20000 * 64)


def test_reading_an_empty_one(tmp_path: Path) -> None:
    side = read_sidecar(written(tmp_path / "side", 0))
    assert (list(side), side.torn, side.good_length) == ([], None, 32)


@pytest.mark.parametrize("cut", [1, 63])
def test_a_torn_tail(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "side", 3)
    path.write_bytes(path.read_bytes()[:-cut])
    side = read_sidecar(path)
    assert list(side) == [record(0), record(1)]
    assert side.good_length == 32 + 2 * 64
    assert side.torn == f"{path}: no record at byte {32 + 2 * 64}"


def test_a_tail_of_zeros_is_what_a_power_loss_leaves(tmp_path: Path) -> None:
    path = written(tmp_path / "side", 3)
    path.write_bytes(path.read_bytes() + bytes(256))
    side = read_sidecar(path)
    assert len(list(side)) == 3
    assert side.torn


def test_iterating_twice_starts_anew(tmp_path: Path) -> None:
    side = read_sidecar(written(tmp_path / "side", 2))
    assert list(side) == list(side)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (b"", "shorter than its header"),
        (fileheader.encode(SIDECAR_MAGIC, HEADER)[:31], "shorter than its header"),
        (fileheader.encode(PACK_MAGIC, HEADER), "does not begin with CAFSSIDE"),
        (struct.pack("<8sII16s", SIDECAR_MAGIC, 0, 7, bytes(16)), "version 0"),
    ],
)
def test_a_header_that_is_none(tmp_path: Path, head: bytes, complaint: str) -> None:
    path = tmp_path / "side"
    path.write_bytes(head)
    with pytest.raises(DamagedError, match=complaint):
        read_sidecar(path)


def test_a_header_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "side"
    path.write_bytes(struct.pack("<8sII16s", SIDECAR_MAGIC, 2, 7, bytes(16)))
    with pytest.raises(StoreVersionError, match="version 2, this cafs knows up to 1"):
        read_sidecar(path)


def test_no_file_and_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_sidecar(tmp_path / "none")
    with pytest.raises(DiskError):
        read_sidecar(tmp_path)
