"""A bit of the index that flips on disk is noticed, wherever it is: EIO, never a wrong answer."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from cafs._index import seal, unseal
from cafs.errors import IndexDamagedError
from cafs.index import fence, layout, pages
from cafs.index.copyplace import DIRECTORY
from cafs.index.counters import AHEAD, Counters
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.env import Environment
from cafs.index.overlay import Overlay
from cafs.operate.index_copy import copy_index
from cafs.operate.rebuild import rebuild
from cafs.store import open_store
from cafs.types import ROOT
from cafs.view import View
from tests.unit.damaged_index import flip
from tests.unit.small_store import OPTIONS, findings, lookup, make, noise, write

Content = dict[tuple[str, bytes], bytes]
NUMBERS = {name.decode(): number for number, name in enumerate(layout.DATABASES)}
CHECKED = [name for name, number in NUMBERS.items() if number not in layout.UNCHECKED]


@pytest.fixture(scope="module")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make(tmp_path_factory.mktemp("pristine") / "store")

    async def more() -> None:
        async with open_store(store, OPTIONS) as opened:
            for number in range(100):
                ino = await write(opened, ROOT, b"file %d" % number, noise(number, 300))
                opened.tree.xattrs.put(ino, b"user.n", b"%d" % number)
            opened.tree.xattrs.put(ino, b"user.long", noise(5, 3900))
            opened.tree.xattrs.put(ino, b"user.empty", b"")
            await opened.sync_all()

    trio.run(more)
    return store


@pytest.fixture
def store(_pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "store"
    shutil.copytree(_pristine, copy)
    return copy


def _keys(index: Path, database: str) -> list[bytes]:
    found: list[bytes] = []

    def keep(name: str, key: bytes, _value: bytes) -> None:
        if name == database:
            found.append(key)

    pages.audit(index, keep=keep)
    return found


def _content(index: Path) -> tuple[Content, set[tuple[str, bytes]]]:
    """All records by way of the overlay, and the keys that answer with an error."""
    good: Content = {}
    bad: set[tuple[str, bytes]] = set()
    keys = [(name, key) for name in NUMBERS for key in _raw_keys(index, name)]
    environment = Environment(index)
    overlay = Overlay(environment)
    try:
        for name, key in keys:
            (anywhere,) = overlay.get_anywhere(NUMBERS[name], [key])
            try:
                value = overlay.get(NUMBERS[name], key)
            except IndexDamagedError as error:
                assert anywhere is None
                assert name in str(error)
                bad.add((name, key))
            else:
                assert value is not None
                good[name, key] = value
    finally:
        overlay.close()
        environment.close()
    return good, bad


def _raw_keys(index: Path, database: str) -> Iterator[bytes]:
    """The keys as LMDB has them, of records whose check is wrong, too."""
    environment = Environment(index)
    try:
        with (
            environment.begin() as txn,
            txn.cursor(environment.databases[NUMBERS[database]]) as cursor,
        ):
            yield from [bytes(key) for key in cursor.iternext(keys=True, values=False)]
    finally:
        environment.close()


@given(
    database=st.integers(0, len(layout.DATABASES) - 1),
    key=st.binary(min_size=1, max_size=261),
    value=st.binary(max_size=2000),
    bit=st.integers(0),
)
def test_a_seal_is_what_the_format_says(database: int, key: bytes, value: bytes, bit: int) -> None:
    sealed = seal(database, key, value)
    assert unseal(database, key, sealed) == value
    if database in layout.UNCHECKED:
        assert sealed == value
        return
    seed = xxhash.xxh3_64_intdigest(key, database)
    check = xxhash.xxh3_64_intdigest(value, seed) & 0xFFFFFFFF
    assert sealed == value + check.to_bytes(4, "little")
    bit %= 8 * len(sealed)
    flipped = bytearray(sealed)
    flipped[bit // 8] ^= 1 << bit % 8
    assert unseal(database, key, bytes(flipped)) is None
    # Where a record came to lie is part of what is checked.
    assert unseal(database, key + b"x", sealed) is None
    assert unseal((database + 1) % len(layout.DATABASES), key, sealed) != value


@pytest.mark.parametrize("length", [0, 1, 3])
def test_what_is_too_short_for_a_check_is_damage(length: int) -> None:
    assert unseal(layout.INODES, layout.u48(1), bytes(length)) is None


@pytest.mark.parametrize("arguments", [(15, b"", b""), (-1, b"", b"")])
def test_there_is_no_such_database(arguments: tuple[int, bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="database"):
        seal(*arguments)
    with pytest.raises(ValueError, match="database"):
        unseal(*arguments)


@pytest.mark.parametrize("database", CHECKED)
def test_a_flipped_bit_of_a_value_is_an_error_for_exactly_its_key(
    store: Path, database: str
) -> None:
    index = store / "index"
    file = index / pages.FILE
    pristine = file.read_bytes()
    before, none = _content(index)
    assert not none
    rng = random.Random(database)
    keys = _keys(index, database)
    if not keys:
        assert database == "unhashed"
        return
    for _ in range(12):
        key = rng.choice(keys)
        length = len(before[database, key]) + 4
        flip(index, database, key, bit=rng.randrange(8 * length))
        good, bad = _content(index)
        assert bad == {(database, key)}
        assert good == {place: value for place, value in before.items() if place not in bad}
        faults = pages.audit(index).faults
        assert [(fault.database, fault.low) for fault in faults] == [(database, key)]
        assert faults[0].one_record
        file.write_bytes(pristine)


@pytest.mark.parametrize("database", CHECKED)
def test_a_flipped_bit_of_a_key_is_put_right_or_fenced_off(store: Path, database: str) -> None:
    index = store / "index"
    file = index / pages.FILE
    pristine = file.read_bytes()
    before, _ = _content(index)
    rng = random.Random(database)
    keys = _keys(index, database)
    for _ in range(12 if keys else 0):
        key = rng.choice(keys)
        flip(index, database, key, in_key=True, bit=rng.randrange(8 * len(key)))
        assert pages.audit(index).faults
        fence.guard(index, 60)
        assert pages.audit(index).faults == []
        assert _content(index) == (before, set())
        file.write_bytes(pristine)


@pytest.mark.parametrize("with_copy", [True, False])
@pytest.mark.parametrize("database", ["meta", "inodes", "entries", "blobs", "chunks", "packs"])
def test_rebuild_takes_the_record_from_the_copy_or_repairs_without_it(
    store: Path, database: str, with_copy: bool
) -> None:
    index = store / "index"
    before, _ = _content(index)
    if with_copy:
        copy_index(store)
    key = {
        "inodes": layout.u48(lookup(store, b"file 7")[0]),
        "entries": layout.entry_key(ROOT, layout.name_cookie(b"file 7")),
    }.get(database) or _keys(index, database)[0]
    flip(index, database, key, bit=100)
    done = rebuild(store, lambda _phase: None)
    assert (done.source, done.from_copy) == ("both", with_copy)
    assert "is not what was written" in done.faults[0]
    assert pages.audit(index).faults == []
    left = findings(store)
    if with_copy:
        assert not left
        # Those that were given out since the copy are not given out again.
        passed_over = Counters.decode(before["meta", COUNTERS_KEY]).encode(AHEAD)
        assert _content(index)[0] == before | {("meta", COUNTERS_KEY): passed_over}
    elif database in ("meta", "entries"):
        assert not left
    elif database == "packs":
        # The pack is found by what lies in it: nothing is lost.
        assert not left
        with View(store) as view:
            for name, seed in (("file 7", 7), ("file 99", 99)):
                attr = view.tree.inodes.get(view.tree.lookup(ROOT, name.encode()) or ROOT)
                assert b"".join(view.content(attr.blob)) == noise(seed, 300)
    else:
        # What is lost is lost, and told; the rest can be read.
        with View(store) as view:
            attr = view.tree.inodes.get(view.tree.lookup(ROOT, b"file 99") or ROOT)
            assert b"".join(view.content(attr.blob)) == noise(99, 300)


def test_a_copy_with_a_flipped_bit_is_used_for_the_rest(store: Path) -> None:
    copy_index(store)
    key = layout.entry_key(ROOT, layout.name_cookie(b"file 7"))
    flip(store / DIRECTORY, "entries", key)
    (store / "index" / pages.FILE).unlink()
    assert rebuild(store, lambda _phase: None).source == "copy"
    assert not findings(store)
    with View(store) as view:
        assert view.tree.lookup(ROOT, b"file 7") is None
        assert view.tree.lookup(ROOT, b"file 8") is not None
        assert view.tree.lookup(ROOT, b"lost+found") is not None


def test_a_damaged_index_does_not_take_the_place_of_the_last_good_copy(store: Path) -> None:
    copy_index(store)
    flip(store / "index", "blobs", _keys(store / "index", "blobs")[0])
    with pytest.raises(IndexDamagedError, match="is not what was written"):
        copy_index(store)
    assert pages.audit(store / DIRECTORY, lock=False).faults == []
