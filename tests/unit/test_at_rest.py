"""What a daemon keeps in memory of its tree is bounded, and goes when nobody asks for it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio

from cafs.mount import memory
from cafs.newstore import create
from cafs.store import Store, open_store
from cafs.tree import xattrs
from cafs.types import ROOT
from tests.model.storethread import QUIET
from tests.unit.small_store import PARAMS

FILES = 300
WAIT_S = 20.0


def make_files(store: Store, prefix: bytes) -> None:
    for number in range(FILES):
        store.tree.create(ROOT, prefix + b"%d" % number, stat.S_IFREG | 0o644, 0, 0)


def test_nothing_is_kept_of_files_that_were_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "store", PARAMS)
    monkeypatch.setattr(memory, "ASKED_IDLE_S", 0.01)

    async def main() -> None:
        async with open_store(tmp_path / "store", QUIET) as store, trio.open_nursery() as nursery:
            make_files(store, b"a")
            assert store.tree.xattrs.known_bare >= FILES
            nursery.start_soon(memory.give_back_when_idle, store)
            with trio.fail_after(WAIT_S):
                while store.tree.xattrs.known_bare:
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_inodes_without_attributes_are_kept_count_of_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "store", PARAMS)
    monkeypatch.setattr(xattrs, "NONE_MAX", FILES // 4)

    async def main() -> None:
        async with open_store(tmp_path / "store", QUIET) as store:
            make_files(store, b"a")
            kept = store.tree.xattrs
            assert 0 < kept.known_bare <= FILES // 4
            for number in range(FILES):
                ino = store.tree.lookup(ROOT, b"a%d" % number)
                assert ino is not None
                assert kept.get(ino, b"user.none") is None
            assert 0 < kept.known_bare <= FILES // 4
            kept.forget()
            assert kept.known_bare == 0

    trio.run(main)
