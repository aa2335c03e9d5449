"""A rebuild that is stopped anywhere, or finds no room, costs nothing; the next one goes on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cafs.durable import Disk
from cafs.errors import DiskError, DiskFullError, IndexDamagedError
from cafs.index import pages
from cafs.index.copyplace import DIRECTORY
from cafs.lock import Holder, holder
from cafs.operate import new_index
from cafs.operate import rebuild as module
from cafs.operate.give_back import compact_offline
from cafs.operate.index_copy import copy_index
from cafs.operate.rebuild import Rebuilt, rebuild
from cafs.operate.relink import Relink
from cafs.operate.repair import repair
from cafs.store import Store
from cafs.types import ROOT
from cafs.view import View
from tests.conftest import RunCafs
from tests.unit.damaged_index import break_leaf
from tests.unit.small_store import OPTIONS, findings, in_store, lookup, make, noise, untold, write

LARGE = noise(1, 3_000_000)


@pytest.fixture(scope="module")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a copy of the index that is older than 200 names."""
    store = make(tmp_path_factory.mktemp("pristine") / "store")

    async def doomed(opened: Store) -> None:
        await write(opened, ROOT, b"doomed", noise(77, 2_000_000))
        await opened.sync_all()

    async def more(opened: Store) -> None:
        for number in range(200):
            opened.tree.create(ROOT, b"since %d" % number, stat.S_IFREG | 0o600, 0, 0)
        await opened.sync_all()

    in_store(store, doomed)
    copy_index(store)
    in_store(store, more)
    return store


@pytest.fixture
def store(_pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "store"
    shutil.copytree(_pristine, copy)
    return copy


def _nothing(_phase: str) -> None:
    pass


async def _no_work(store: Store) -> None:
    await store.sync_all()


def _names(store: Path) -> int:
    with View(store) as view:
        return len(list(view.tree.listing(ROOT, 0)))


def _assert_large(store: Path) -> None:
    blob = lookup(store, b"a/b/large")[1].blob
    with View(store) as view:
        assert b"".join(view.content(blob)) == LARGE


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _lose(store: Path) -> None:
    """The index is gone, and since its copy everything alive has moved."""
    _compact(store)
    (store / "index" / pages.FILE).unlink()


def _age(store: Path) -> None:
    """The index is whole, and since its commit everything alive has moved."""
    old = (store / DIRECTORY / pages.FILE).read_bytes()
    _compact(store)
    shutil.rmtree(store / "index")
    (store / "index").mkdir()
    (store / "index" / pages.FILE).write_bytes(old)


def _compact(store: Path) -> None:
    kept = store.parent / "kept"
    shutil.copytree(store / DIRECTORY, kept)

    async def delete(opened: Store) -> None:
        opened.nameless.forget(opened.tree.unlink(ROOT, b"doomed")[0])
        await opened.sync_all()

    in_store(store, delete)
    trio.run(compact_offline, store, OPTIONS, 0.0, untold)
    shutil.rmtree(store / DIRECTORY)
    shutil.copytree(kept, store / DIRECTORY)


@pytest.mark.parametrize("damage", [_lose, _age])
@pytest.mark.parametrize("stage", ["relink", "repair"])
def test_no_daemon_starts_with_an_index_that_was_not_compared_with_the_packs(
    store: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], stage: str
) -> None:
    damage(store)
    before = {path.name for path in (store / "packs").iterdir()}
    with monkeypatch.context() as patch:
        if stage == "relink":
            patch.setattr(Relink, "run", _stop)
        else:
            patch.setattr(module, "repair_locked", _stop)
        with pytest.raises(KeyboardInterrupt):
            rebuild(store, _nothing)
    if (damage, stage) == (_age, "relink"):
        # Nothing was changed yet: a start may mark what is missing, and removes nothing.
        in_store(store, _no_work)
    else:
        with pytest.raises(IndexDamagedError) as refused:
            in_store(store, _no_work)
        assert "cafs rebuild" in refused.value.advice
        with pytest.raises(IndexDamagedError):
            repair(store)
    assert before <= {path.name for path in (store / "packs").iterdir()}
    done = rebuild(store, _nothing)
    assert done.source == ("copy" if damage == _lose else "index")
    _assert_large(store)
    in_store(store, _no_work)
    _assert_large(store)
    assert not set(findings(store)) - {"damaged-chunk", "pack-file"}


def test_the_lock_is_held_to_the_end(store: Path) -> None:
    holders: list[Holder | None] = []

    def phase(_text: str) -> None:
        holders.append(holder(store))

    break_leaf(store / "index", "xattrs")
    rebuild(store, phase)
    assert len(holders) == 4
    assert None not in holders


@pytest.mark.parametrize("renames", [0, 1])
def test_a_new_index_that_was_kept_from_its_place_gets_there(
    store: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    before = _names(store)
    break_leaf(store / "index", "xattrs")
    real = Disk.rename
    count = 0

    def rename(self: Disk, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        nonlocal count
        if Path(dst).name.startswith("index"):
            if count == renames:
                raise KeyboardInterrupt
            count += 1
        real(self, src, dst)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            rebuild(store, _nothing)
    assert (store / "index").exists() == (renames == 0)
    done = rebuild(store, _nothing)
    assert done.source == "both"
    assert done.kept_as == "index.damaged-1"
    assert done.faults
    assert _names(store) == before
    assert not (store / "index.new").exists()
    assert not findings(store)


def test_a_new_index_is_void_when_the_old_one_went_on(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_leaf(store / "index", "symlinks")
    with monkeypatch.context() as patch:
        patch.setattr(new_index, "put_in_place", _stop)
        with pytest.raises(KeyboardInterrupt):
            rebuild(store, _nothing)

    async def more(opened: Store) -> None:
        opened.tree.create(ROOT, b"later", stat.S_IFREG | 0o600, 0, 0)
        await opened.sync_all()

    in_store(store, more)
    rebuild(store, _nothing)
    assert lookup(store, b"later")


@contextmanager
def _no_file_longer_than(length: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _all(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name not in ("lock", "lock.mdb")
    }


def test_a_new_index_that_cannot_be_written_leaves_the_store_as_it_was(store: Path) -> None:
    """A disk that is full is no reason to take a copy that has less."""
    names = _names(store)
    break_leaf(store / "index", "xattrs")
    before = _all(store)
    room = (store / DIRECTORY / pages.FILE).stat().st_size + 8192
    with _no_file_longer_than(room), pytest.raises((DiskFullError, DiskError), match=r"index\.new"):
        rebuild(store, _nothing)
    assert _all(store) == before
    done: Rebuilt = rebuild(store, _nothing)
    assert done.source == "both"
    assert _names(store) == names


def test_a_copy_with_a_damaged_page_gives_what_is_whole_of_it(store: Path) -> None:
    copy_index(store)
    names = _names(store)
    break_leaf(store / DIRECTORY, "xattrs")
    (store / DIRECTORY / "lock.mdb").unlink(missing_ok=True)
    (store / "index" / pages.FILE).unlink()
    done = rebuild(store, _nothing)
    assert done.source == "copy"
    assert any("in the copy" in fault and "xattrs" in fault for fault in done.faults)
    assert _names(store) == names
    _assert_large(store)


def test_a_check_looks_at_the_copy_too(store: Path, run_cafs: RunCafs) -> None:
    copy_index(store)
    assert run_cafs("check", store).returncode == 0
    page = break_leaf(store / DIRECTORY, "xattrs")
    (store / DIRECTORY / "lock.mdb").unlink(missing_ok=True)
    done = run_cafs("check", store, "--json")
    assert done.returncode == 8
    report = json.loads(done.stdout)
    assert report["kinds"] == {"index-copy": 1}
    [finding] = report["findings"]
    assert f"page {page} " in finding["what"]
    assert "index-copy" in finding["repair"]
    assert finding["repairable"] is False
    assert report["checked"]["inodes_count"] > 200
    break_leaf(store / "index", "xattrs")
    report = json.loads(run_cafs("check", store, "--json").stdout)
    assert report["kinds"] == {"index-page": 1, "index-copy": 1}
    assert [each["repairable"] for each in report["findings"]] == [False, False]


def test_lost_records_come_from_a_copy_with_other_damage(store: Path) -> None:
    copy_index(store)
    names = _names(store)
    break_leaf(store / DIRECTORY, "xattrs")
    (store / DIRECTORY / "lock.mdb").unlink(missing_ok=True)
    break_leaf(store / "index", "inodes")
    done = rebuild(store, _nothing)
    assert (done.source, done.from_copy > 0) == ("both", True)
    assert _names(store) == names
    assert not findings(store)
    _assert_large(store)
