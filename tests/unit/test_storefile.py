"""``store.toml`` gets a later version as a whole, or keeps the one it has."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cafs import storefile
from cafs.config import StoreParams
from cafs.durable import Disk
from cafs.errors import CafsError, StoreVersionError
from cafs.index.layout import AGED_VERSION, FIRST_VERSION, FORMAT_VERSION
from cafs.newstore import create
from tests.fault.faulty import Fault, FaultyDisk

PARAMS = StoreParams(chunk_min=1024, chunk_avg=4096, chunk_max=8192)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    create(path, PARAMS)
    return path


def test_a_new_store_has_the_first_version(store: Path) -> None:
    assert storefile.read(store).format_version == FIRST_VERSION < AGED_VERSION <= FORMAT_VERSION


def test_an_upgrade_changes_the_version_and_nothing_else(store: Path) -> None:
    before = storefile.read(store)
    after = storefile.upgrade(store, AGED_VERSION, Disk())
    assert after == before._replace(format_version=AGED_VERSION) == storefile.read(store)
    text = (store / storefile.NAME).read_bytes()
    disk = FaultyDisk()
    assert storefile.upgrade(store, FIRST_VERSION, disk) == after, "it never goes back"
    assert (store / storefile.NAME).read_bytes() == text
    assert disk.calls == [], "nothing is written again"


def test_an_upgrade_keeps_the_rights(store: Path) -> None:
    path = store / storefile.NAME
    os.chown(path, 12345, 54321) if os.geteuid() == 0 else None
    path.chmod(0o640)
    before = path.stat()
    storefile.upgrade(store, AGED_VERSION, Disk())
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


def test_an_upgrade_may_fail_at_any_call(store: Path) -> None:
    probe = FaultyDisk()
    other = store.parent / "other"
    create(other, PARAMS)
    storefile.upgrade(other, AGED_VERSION, probe)
    assert len(probe.calls) >= 5
    before = storefile.read(store)
    for at in range(1, len(probe.calls) + 1):
        disk = FaultyDisk([Fault(at, errno.ENOSPC)])
        with pytest.raises(CafsError):
            storefile.upgrade(store, AGED_VERSION, disk)
        assert disk.all_fired
        now = storefile.read(store)
        assert now._replace(format_version=0) == before._replace(format_version=0)
        if now.format_version == AGED_VERSION:
            # Only the directory was not synced: the new file is there as a whole.
            assert at == len(probe.calls)
    # What was left of a try is in nobody's way.
    assert storefile.upgrade(store, AGED_VERSION, Disk()).format_version == AGED_VERSION
    assert sorted(p.name for p in store.iterdir() if p.name.startswith("store")) == ["store.toml"]


def test_an_older_program_refuses(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storefile.upgrade(store, AGED_VERSION, Disk())
    monkeypatch.setattr("cafs.index.layout.FORMAT_VERSION", FIRST_VERSION)
    with pytest.raises(StoreVersionError, match="has format 2, this cafs knows up to 1"):
        storefile.read(store)
