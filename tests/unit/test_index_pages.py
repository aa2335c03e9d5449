"""Damaged pages of the index are found without LMDB, and fenced off so that LMDB says so."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from cafs.errors import IndexDamagedError
from cafs.index import fence, pages
from tests.conftest import ROOT

KEYS = 6000
SIZE = 4096

READER = """
import sys, lmdb
env = lmdb.open(sys.argv[1], map_size=1 << 40, max_dbs=4, readonly=True, readahead=False)
missing = errors = 0
for name in (b"a", b"b"):
    try:
        db = env.open_db(name, create=False)
    except lmdb.Error:
        errors += 1
        continue
    for i in range(int(sys.argv[2])):
        txn = env.begin()
        try:
            missing += txn.get(i.to_bytes(6, "big"), db=db) is None
        except lmdb.Error:
            errors += 1
        txn.abort()
    txn = env.begin()
    try:
        for _ in txn.cursor(db):
            pass
    except lmdb.Error:
        errors += 1
    txn.abort()
print(missing, errors)
"""


@pytest.fixture(scope="module")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index")
    rng = random.Random(3)
    env = lmdb.open(str(path), map_size=1 << 30, max_dbs=4, sync=False)
    databases = [env.open_db(name) for name in (b"a", b"b")]
    for start in range(0, KEYS, 1000):
        with env.begin(write=True) as txn:
            for i in range(start, start + 1000):
                key = i.to_bytes(6, "big")
                txn.put(key, rng.randbytes(40), db=databases[0])
                txn.put(key, rng.randbytes(9000 if i % 200 == 0 else 60), db=databases[1])
    with env.begin(write=True) as txn:
        txn.put(b"gone", b"", db=databases[0])
        txn.delete(b"gone", db=databases[0])
    env.close()
    return path


@pytest.fixture
def index(_pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "index"
    shutil.copytree(_pristine, copy)
    return copy


def _read(index: Path) -> tuple[int, int]:
    """Read all in a process of its own, which must not die; missing keys, and errors."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(index), str(KEYS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    missing, errors = map(int, done.stdout.split())
    return missing, errors


def test_a_sound_index_has_no_faults(index: Path) -> None:
    found = pages.audit(index)
    assert found.faults == []
    assert found.complete
    assert found.pages > 100


def _damage(data: bytearray, how: str, page: int, rng: random.Random) -> None:
    start = page * SIZE
    if how == "zeros":
        data[start : start + SIZE] = bytes(SIZE)
    elif how == "noise":
        data[start : start + SIZE] = rng.randbytes(SIZE)
    elif how == "another page":
        data[start : start + SIZE] = data[start + SIZE : start + 2 * SIZE] or bytes(SIZE)
    else:
        place = start + rng.randrange(16 if how == "header" else 40)
        data[place] ^= 1 << rng.randrange(8)


@pytest.mark.parametrize("how", ["zeros", "noise", "another page", "header", "nodes"])
def test_what_is_damaged_answers_with_an_error_and_is_never_just_missing(
    index: Path, how: str
) -> None:
    file = index / pages.FILE
    pristine = file.read_bytes()
    rng = random.Random(how)
    found = 0
    for _ in range(8):
        data = bytearray(pristine)
        _damage(data, how, rng.randrange(2, len(data) // SIZE - 1), rng)
        file.write_bytes(data)
        try:
            faults = fence.guard(index, 60).faults
        except IndexDamagedError:
            found += 1
            continue
        missing, errors = _read(index)
        assert not missing
        assert bool(errors) <= bool(faults)
        found += bool(faults)
    assert found


def test_a_fenced_page_is_still_a_fault_the_next_time(index: Path) -> None:
    file = index / pages.FILE
    data = bytearray(file.read_bytes())
    leaf = next(
        page
        for page in range(len(data) // SIZE - 1, 2, -1)
        if data[page * SIZE + 10] == 2 and data[page * SIZE] == page & 0xFF
    )
    data[leaf * SIZE : (leaf + 1) * SIZE] = bytes(SIZE)
    file.write_bytes(data)
    first = fence.guard(index, 60).faults
    if first:
        assert pages.audit(index).faults


def test_without_a_meta_page_there_is_nothing_to_begin_with(index: Path) -> None:
    file = index / pages.FILE
    data = bytearray(file.read_bytes())
    data[: 2 * SIZE] = bytes(2 * SIZE)
    file.write_bytes(data)
    with pytest.raises(IndexDamagedError):
        pages.audit(index)


def test_no_time_means_incomplete(index: Path) -> None:
    assert not pages.audit(index, budget_s=0).complete


def test_keep_is_given_everything_in_order(index: Path) -> None:
    kept: dict[str, list[bytes]] = {}
    pages.audit(index, keep=lambda name, key, _value: kept.setdefault(name, []).append(key))
    keys = [i.to_bytes(6, "big") for i in range(KEYS)]
    assert kept["a"] == keys
    assert kept["b"] == keys
