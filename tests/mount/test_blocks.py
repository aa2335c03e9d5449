"""st_blocks: what of a file takes room, at any moment of its making."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.fault.smalldisk import wait_until
from tests.mount.conftest import Place

MIB = 1 << 20
BLOCK = 4096
"""What a byte takes on the control; on a mount it is a part of that."""


def _taken(path: Path) -> int:
    return path.stat().st_blocks * 512


def _noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


@pytest.mark.parametrize("size", [10 << 30, (1 << 40) + 1])
def test_a_byte_far_out_takes_a_block(place: Place, size: int) -> None:
    path = place / "a"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        os.pwrite(fd, b"x", size - 1)
        assert 0 < _taken(path) <= BLOCK
        os.fsync(fd)
        assert 0 < _taken(path) <= BLOCK
        os.pwrite(fd, b"x", size // 2)
        assert 0 < _taken(path) <= 2 * BLOCK
    finally:
        os.close(fd)
    assert 0 < _taken(path) <= 2 * BLOCK


def test_what_is_added_by_truncation_takes_nothing(place: Place) -> None:
    path = place / "a"
    path.write_bytes(b"x" * BLOCK)
    for size in (1 << 40, 1 << 30, 1 << 41, BLOCK):
        os.truncate(path, size)
        assert _taken(path) == BLOCK
        os.chmod(path, 0o600)
        assert _taken(path) == BLOCK
    os.truncate(path, 0)
    assert _taken(path) == 0


def test_a_hole_that_is_filled_takes_room(place: Place) -> None:
    path = place / "a"
    path.touch()
    os.truncate(path, 10 * MIB)
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        assert _taken(path) == 0
        os.pwrite(fd, _noise(MIB), 5 * MIB)
        assert _taken(path) == MIB
        os.fsync(fd)
        assert _taken(path) == MIB
        os.ftruncate(fd, 5 * MIB + MIB // 2)
        os.fsync(fd)
        wait_until("half of it is gone", lambda: _taken(path) == MIB // 2)
    finally:
        os.close(fd)


def test_what_is_overwritten_takes_no_more_room(place: Place) -> None:
    """The kernel keeps what it was told in the middle, and must hear of the end."""
    path = place / "a"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        os.pwrite(fd, _noise(MIB), 3 * MIB)
        os.fsync(fd)
        for place_ in range(0, MIB, 64 << 10):
            os.pwrite(fd, b"again" * 10_000, 3 * MIB + place_)
            assert MIB <= _taken(path) <= 2 * MIB
        os.fsync(fd)
        wait_until("only what is there counts", lambda: _taken(path) == MIB)
    finally:
        os.close(fd)


def test_a_file_without_holes_takes_its_size(place: Place) -> None:
    path = place / "a"
    unit = 512 if place.is_cafs else BLOCK
    with path.open("wb", buffering=0) as stream:
        for size in range(100_000, 4_000_001, 100_000):
            stream.write(_noise(100_000))
            assert _taken(path) == -(-size // unit) * unit
        stream.seek(50_000)
        stream.write(_noise(100_000))
        assert _taken(path) == -(-4_000_000 // unit) * unit
