"""An index that was damaged or lost comes back from what is whole, its copy, and the packs."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
import trio

from cafs.errors import IndexDamagedError
from cafs.index import fence, pages
from cafs.index.copyplace import DIRECTORY
from cafs.operate.give_back import compact_offline
from cafs.operate.index_copy import IndexCopier, copy_index
from cafs.operate.rebuild import rebuild
from cafs.store import open_store
from cafs.types import ROOT
from cafs.view import View
from tests.conftest import RunCafs
from tests.unit.damaged_index import break_leaf, break_root
from tests.unit.small_store import OPTIONS, findings, lookup, make, noise, untold, write

DATABASES = ["inodes", "entries", "blobs", "recipes", "blob_sha256", "chunks", "chunk_sha256"]


@pytest.fixture(scope="module")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make(tmp_path_factory.mktemp("pristine") / "store")

    async def more() -> None:
        async with open_store(store, OPTIONS) as opened:
            for number in range(300):
                await write(opened, ROOT, b"file %d" % number, noise(number, 300))
            await write(opened, ROOT, b"doomed", noise(77, 1_000_000))
            await opened.sync_all()

    trio.run(more)
    copy_index(store)
    return store


@pytest.fixture
def store(_pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "store"
    shutil.copytree(_pristine, copy)
    return copy


def _contents(store: Path) -> dict[bytes, bytes]:
    found = {}
    with View(store) as view:
        for entry in view.tree.listing(ROOT, 0):
            attr = view.tree.inodes.get(entry.ino)
            if attr.blob and entry.type == 0o10:
                found[entry.name] = b"".join(view.content(attr.blob))
    found[b"large"] = b""
    blob = lookup(store, b"a/b/large")[1].blob
    with View(store) as view:
        found[b"large"] = b"".join(view.content(blob))
    return found


def _nothing(_phase: str) -> None:
    pass


def test_a_whole_index_is_left_as_it_is(store: Path) -> None:
    before = _contents(store)
    done = rebuild(store, _nothing)
    assert (done.source, done.moved_chunks, done.lost_chunks) == ("index", 0, 0)
    assert not done.repaired.repaired
    assert _contents(store) == before


async def _start(store: Path) -> None:
    async with open_store(store, OPTIONS):
        pass


def _damage_meta(store: Path, page: int, at: int, length: int) -> None:
    with (store / "index" / pages.FILE).open("r+b") as file:
        file.seek(page * 4096 + at)
        old = file.read(length)
        file.seek(page * 4096 + at)
        file.write(bytes(byte ^ 0x10 for byte in old) if length < 100 else bytes(length))


@pytest.mark.parametrize("at", [10, 16, 20], ids=["flags", "magic", "version"])
@pytest.mark.parametrize("page", [0, 1])
def test_a_flipped_bit_of_a_meta_page_loses_nothing(
    store: Path, page: int, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(store / DIRECTORY)
    before = _contents(store)
    _damage_meta(store, page, at, 1)
    if at == 10:
        with (store / "index" / pages.FILE).open("r+b") as file:
            file.seek(page * 4096 + at)
            file.write(b"\0")
    trio.run(_start, store)
    assert f"meta page {page} of the index was damaged; it is put right" in caplog.text
    assert _contents(store) == before


def _newest_page(store: Path) -> int:
    """Which of the two meta pages the last commit wrote, by its transaction's number."""
    data = (store / "index" / pages.FILE).read_bytes()
    first, second = (struct.unpack_from("<Q", data, page * 4096 + 144)[0] for page in (0, 1))
    assert abs(first - second) == 1
    return int(second > first)


@pytest.mark.parametrize("newest", [False, True])
def test_a_meta_page_that_is_gone_costs_one_commit_at_most(store: Path, newest: bool) -> None:
    async def one_more() -> None:
        async with open_store(store, OPTIONS) as opened:
            await write(opened, ROOT, b"last", noise(78, 100_000))
            await opened.sync_all()
            await write(opened, ROOT, b"later", b"in the commit at the end")

    before = _contents(store)
    trio.run(one_more)
    shutil.rmtree(store / DIRECTORY)
    page = _newest_page(store)
    _damage_meta(store, page if newest else 1 - page, 0, 4096)
    with pytest.raises(IndexDamagedError) as refused:
        trio.run(_start, store)
    assert "cafs rebuild" in refused.value.advice
    done = rebuild(store, _nothing)
    assert done.source == "index"
    assert "the one before" in done.faults[0]
    now = _contents(store)
    assert set(now) >= set(before) | {b"last"}
    assert all(now[name] == data for name, data in before.items())
    assert newest or b"later" in now
    assert not findings(store)
    trio.run(_start, store)
    assert _contents(store) == now


@pytest.mark.parametrize("database", DATABASES)
def test_what_lay_in_a_damaged_page_comes_from_the_copy(store: Path, database: str) -> None:
    before = _contents(store)
    break_leaf(store / "index", database)
    done = rebuild(store, _nothing)
    assert done.source == "both"
    assert done.from_copy > 0
    assert (store / done.kept_as / pages.FILE).exists()
    assert not findings(store)
    assert _contents(store) == before


def test_a_page_that_was_fenced_off_comes_back_too(store: Path) -> None:
    before = _contents(store)
    break_leaf(store / "index", "entries")
    assert fence.guard(store / "index", 60).faults
    assert rebuild(store, _nothing).from_copy > 0
    assert _contents(store) == before


def test_without_a_copy_files_lose_their_names_and_nothing_else(store: Path) -> None:
    shutil.rmtree(store / DIRECTORY)
    break_leaf(store / "index", "entries")
    done = rebuild(store, _nothing)
    assert done.from_copy == 0
    assert done.repaired.repaired["unreachable"] > 0
    assert not findings(store)
    with View(store) as view:
        assert view.tree.lookup(ROOT, b"lost+found") is not None
        assert view.counters.files >= 304


@pytest.mark.parametrize("how", ["missing", "root", "cut"])
def test_a_lost_index_comes_from_the_copy(store: Path, how: str) -> None:
    before = _contents(store)
    file = store / "index" / pages.FILE
    if how == "missing":
        file.unlink()
    elif how == "root":
        break_root(store / "index")
    else:
        file.write_bytes(file.read_bytes()[:8192])
    rebuild(store, _nothing)
    assert not findings(store)
    assert _contents(store) == before


def test_numbers_that_were_given_since_the_copy_are_not_given_again(store: Path) -> None:
    async def create() -> int:
        async with open_store(store, OPTIONS) as opened:
            ino = opened.tree.create(ROOT, b"since", 0o100644, 0, 0)
            await opened.sync_all()
            return ino

    given = trio.run(create)
    (store / "index" / pages.FILE).unlink()
    rebuild(store, _nothing)
    assert trio.run(create) > given
    assert not findings(store)


def test_with_neither_an_index_nor_a_copy_nothing_is_changed(store: Path) -> None:
    shutil.rmtree(store / DIRECTORY)
    (store / "index" / pages.FILE).unlink()
    before = sorted(path.name for path in store.rglob("*"))
    with pytest.raises(IndexDamagedError, match="no copy"):
        rebuild(store, _nothing)
    assert sorted(path.name for path in store.rglob("*")) == before


def test_chunks_that_moved_since_the_copy_are_found_in_the_packs(store: Path) -> None:
    kept = store.parent / "kept"
    shutil.copytree(store / DIRECTORY, kept)
    before = _contents(store)

    async def delete_some() -> None:
        async with open_store(store, OPTIONS) as opened:
            for number in range(200):
                opened.nameless.forget(opened.tree.unlink(ROOT, b"file %d" % number)[0])
            opened.nameless.forget(opened.tree.unlink(ROOT, b"doomed")[0])
            await opened.sync_all()

    trio.run(delete_some)
    packs = {path.name for path in (store / "packs").iterdir()}
    trio.run(compact_offline, store, OPTIONS, 0.0, untold)
    assert not packs & {path.name for path in (store / "packs").iterdir()}
    shutil.rmtree(store / DIRECTORY)
    shutil.copytree(kept, store / DIRECTORY)
    (store / "index" / pages.FILE).unlink()
    done = rebuild(store, _nothing)
    assert done.moved_chunks > 100
    # Of what was deleted since the copy the names are back, but its bytes are gone.
    assert done.lost_chunks > 0
    assert set(findings(store)) == {"damaged-chunk", "pack-file"}
    blob = lookup(store, b"a/b/large")[1].blob
    with View(store) as view:
        assert b"".join(view.content(blob)) == before[b"large"]


def _compact_without_doomed(store: Path) -> None:
    """Every live chunk gets another place; those of one file are gone."""

    async def delete() -> None:
        async with open_store(store, OPTIONS) as opened:
            opened.nameless.forget(opened.tree.unlink(ROOT, b"doomed")[0])
            await opened.sync_all()

    trio.run(delete)
    trio.run(compact_offline, store, OPTIONS, 0.0, untold)


def _assert_all_but_doomed(store: Path, before: dict[bytes, bytes]) -> None:
    paths = {name: b"a/b/large" if name == b"large" else name for name in before}
    blobs = {name: lookup(store, path)[1].blob for name, path in paths.items()}
    with View(store) as view:
        for name in before.keys() - {b"doomed"}:
            assert b"".join(view.content(blobs[name])) == before[name], name


def test_a_start_with_an_index_older_than_the_packs_costs_nothing(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A backup that took the index a moment before the packs, and a compaction in between."""
    before = _contents(store)
    old = (store / "index" / pages.FILE).read_bytes()
    _compact_without_doomed(store)
    shutil.rmtree(store / "index")
    (store / "index").mkdir()
    (store / "index" / pages.FILE).write_bytes(old)
    packs = {path.name for path in (store / "packs").iterdir()}
    for _ in range(2):
        trio.run(_start, store)
        assert packs <= {path.name for path in (store / "packs").iterdir()}
    assert f"cafs rebuild {store}" in caplog.text
    done = rebuild(store, _nothing)
    assert done.moved_chunks > 100
    _assert_all_but_doomed(store, before)


def test_a_damaged_sidecar_costs_nothing(store: Path) -> None:
    for side in (store / "packs").glob("*.side"):
        side.write_bytes(side.read_bytes()[:100] + b"garbage")
    done = rebuild(store, _nothing)
    assert (done.moved_chunks, done.lost_chunks) == (0, 0)
    assert not findings(store)


def test_a_damaged_index_does_not_replace_the_last_good_copy(store: Path) -> None:
    before = (store / DIRECTORY / pages.FILE).read_bytes()
    break_leaf(store / "index", "entries")
    with pytest.raises(IndexDamagedError):
        copy_index(store)
    assert (store / DIRECTORY / pages.FILE).read_bytes() == before
    assert [path.name for path in (store / DIRECTORY).iterdir()] == [pages.FILE]


def test_a_store_copies_its_index_while_it_is_open(store: Path) -> None:
    shutil.rmtree(store / DIRECTORY)

    async def work() -> None:
        async with open_store(store, OPTIONS) as opened:
            await write(opened, ROOT, b"new", b"something")
            await opened.sync_all()
            assert await IndexCopier(opened).once()

    trio.run(work)
    (store / "index" / pages.FILE).unlink()
    rebuild(store, _nothing)
    assert lookup(store, b"new")


def test_the_command_says_what_it_did(store: Path, run_cafs: RunCafs) -> None:
    break_leaf(store / "index", "chunks")
    check = run_cafs("check", store)
    assert check.returncode == 8
    assert "index-page" in check.stdout
    assert "cafs rebuild" in check.stdout
    done = run_cafs("rebuild", store)
    assert done.returncode == 0, done.stderr
    assert "came from its copy" in done.stdout
    assert run_cafs("check", store).returncode == 0
