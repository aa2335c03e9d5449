"""A store is made where there is none, and never over what is left of one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lmdb
import pytest

from cafs import newstore, storefile
from cafs.config import StoreParams
from cafs.errors import ConfigError, StoreExistsError
from cafs.index import layout
from cafs.store import Store
from cafs.types import ROOT
from cafs.view import View
from tests.unit.small_store import PARAMS, assert_sound, in_store, lookup, make, noise


def _contents(path: Path) -> dict[Path, bytes]:
    return {
        each.relative_to(path): each.read_bytes()
        for each in path.rglob("*")
        if each.is_file() and each.name != "lock.mdb"
    }


def test_a_store_that_lost_its_file_is_not_made_anew(tmp_path: Path) -> None:
    path = make(tmp_path / "store")
    file = path / storefile.NAME
    before = storefile.read(path)
    file.unlink()
    shutil.rmtree(path / "cache", ignore_errors=True)
    left = _contents(path)
    with pytest.raises(
        StoreExistsError, match=r"00000001\.pack, but store\.toml is lost"
    ) as caught:
        newstore.create(path, PARAMS)
    assert before.id.hex() in caught.value.advice
    assert _contents(path) == left
    # As docs/operations.md says: with another store's file, and this one's id.
    content = storefile.StoreFile(before.id, layout.FORMAT_VERSION, StoreParams())
    file.write_bytes(storefile.render(content))
    assert_sound(path)
    blob = lookup(path, b"a/b/large")[1].blob
    with View(path) as view:
        assert b"".join(view.content(blob)) == noise(1, 3_000_000)


def test_an_index_with_commits_is_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    newstore.create(path, PARAMS)

    async def name_something(store: Store) -> None:
        store.tree.create(ROOT, b"a", 0o40755, 0, 0)
        await store.commit()

    in_store(path, name_something)
    (path / storefile.NAME).unlink()
    shutil.rmtree(path / "cache", ignore_errors=True)
    assert not list((path / "packs").iterdir())
    left = _contents(path)
    with pytest.raises(StoreExistsError, match=r"an index with .* but store\.toml is lost"):
        newstore.create(path, PARAMS)
    assert _contents(path) == left


@pytest.mark.parametrize("stage", ["directories", "empty file", "no tables", "tables", "commit"])
def test_making_a_store_can_be_tried_again(tmp_path: Path, stage: str) -> None:
    path = tmp_path / "store"
    index = path / "index"
    if stage == "commit":
        newstore.create(path, PARAMS)
        (path / storefile.NAME).unlink()
    else:
        for name in newstore.DIRECTORIES:
            (path / name).mkdir(parents=True)
    if stage == "empty file":
        (index / "data.mdb").touch()
    elif stage in ("no tables", "tables"):
        with lmdb.open(str(index), max_dbs=len(layout.DATABASES) + 1) as env:
            for database in layout.DATABASES if stage == "tables" else ():
                env.open_db(database)
    newstore.create(path, PARAMS)
    assert_sound(path)


def test_a_path_that_lmdb_does_not_take_is_refused(tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        newstore.create(strange, PARAMS)
    assert not strange.exists()
    newstore.create(tmp_path / "store", PARAMS)
    (tmp_path / "store").rename(strange)
    with pytest.raises(ConfigError, match="not UTF-8"):
        View(strange)


def test_all_of_a_new_store_is_durable_before_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    path = tmp_path / "store"
    newstore.create(path, PARAMS)
    before = synced[: synced.index(f"{path / storefile.NAME}.new")]
    assert {str(path / "index"), str(tmp_path)} <= set(before)
    assert synced[-1] == str(path)
