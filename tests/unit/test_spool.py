"""The set of changed ranges, beside a set of bytes; and the file that holds them."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafs.blobs.spool import Ranges, Spool
from cafs.durable import Disk
from cafs.errors import DiskFullError
from tests.fault.faulty import Fault, FaultyDisk

places = st.integers(0, 60)


@given(st.lists(st.tuples(st.sampled_from(["add", "cut"]), places, places), max_size=30))
def test_ranges_are_the_set_of_their_bytes(ops: list[tuple[str, int, int]]) -> None:
    ranges = Ranges()
    model: set[int] = set()
    for kind, start, end in ops:
        if kind == "add":
            ranges.add(start, end)
            model |= set(range(start, end))
        else:
            ranges.cut(start)
            model -= set(range(start, 1000))
        found = list(ranges)
        assert {byte for low, high in found for byte in range(low, high)} == model
        assert bool(ranges) == bool(model)
        assert ranges.length == len(model)
        for (_, before), (after, _) in itertools.pairwise(found):
            assert before < after, "neighbours are one range"
        inside = list(ranges.within(10, 30))
        assert {b for low, high in inside for b in range(low, high)} == model & set(range(10, 30))


def test_a_spool_gives_back_what_was_written_last(tmp_path: Path) -> None:
    spool = Spool(Disk(), tmp_path, "1.1")
    assert not list(tmp_path.iterdir()), "it has no name: nothing is left after a kill"
    spool.write(10, b"first")
    spool.write(12, b"XY")
    spool.write(30, b"second")
    assert spool.pieces(0, 100) == [(10, b"fiXYt"), (30, b"second")]
    assert spool.pieces(11, 32) == [(11, b"iXYt"), (30, b"se")]
    spool.cut(12)
    assert spool.pieces(0, 100) == [(10, b"fi")]
    spool.reset()
    assert spool.pieces(0, 100) == []
    spool.close()


def test_what_a_full_disk_refused_is_not_in_the_spool(tmp_path: Path) -> None:
    disk = FaultyDisk([Fault(1, 28, "pwrite_all")])
    spool = Spool(disk, tmp_path, "1.1")
    with pytest.raises(DiskFullError):
        spool.write(0, b"refused")
    assert disk.all_fired
    assert spool.pieces(0, 100) == []
    spool.close()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_what_was_in_the_spool(tmp_path: Path) -> None:
    disk = FaultyDisk([Fault(3, 28, "pwrite_all")])
    spool = Spool(disk, tmp_path, "1.1")
    spool.write(0, b"before")
    spool.write(20, b"behind")
    with pytest.raises(DiskFullError):
        spool.write(3, b"from one to the other")
    assert disk.all_fired
    assert spool.pieces(0, 100) == [(0, b"before"), (20, b"behind")]
    spool.write(3, b"from one to the other")
    assert spool.pieces(0, 100) == [(0, b"beffrom one to the other" + b"nd")]
    spool.close()


def test_a_write_over_many_pieces_is_not_split_into_as_many(tmp_path: Path) -> None:
    disk = FaultyDisk()
    spool = Spool(disk, tmp_path, "1.1")
    for offset in range(0, 1000, 2):
        spool.write(offset, b"x")
    calls = len(disk.calls)
    spool.write(0, bytes(1000))
    assert len(disk.calls) == calls + 1
    spool.write(500, bytes(1000))
    assert spool.pieces(0, 2000) == [(0, bytes(1500))]
    assert len(disk.calls) == calls + 3
    spool.close()
