"""What the kernel of a mount may have in memory."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cafs.mount import known
from cafs.mount.known import Known
from cafs.newstore import create
from cafs.notices import EntryChanged, InodeChanged
from cafs.store import open_store
from cafs.tree.tree import Tree
from cafs.types import ROOT, Ino
from tests.model.storethread import QUIET
from tests.unit.small_store import PARAMS

DIRECTORY = stat.S_IFDIR | 0o755


def with_tree(tmp_path: Path, check: Callable[[Tree], None]) -> None:
    create(tmp_path / "store", PARAMS)

    async def main() -> None:
        async with open_store(tmp_path / "store", QUIET) as store:
            check(store.tree)

    trio.run(main)


def directory(tree: Tree, parent: Ino, name: bytes) -> Ino:
    return tree.create(parent, name, stat.S_IFDIR | 0o755, 0, 0)


def test_names_are_known_where_the_kernel_has_asked(tmp_path: Path) -> None:
    def check(tree: Tree) -> None:
        seen, unseen = directory(tree, ROOT, b"a"), directory(tree, ROOT, b"b")
        kernel = Known(tree)
        kernel.asked(seen, b"absent")
        assert kernel.may_show(EntryChanged(seen, b"absent"))
        assert kernel.may_show(EntryChanged(seen, b"another"))
        assert not kernel.may_show(EntryChanged(unseen, b"absent"))

    with_tree(tmp_path, check)


def test_attributes_are_known_below_what_the_kernel_has_asked_about(tmp_path: Path) -> None:
    def check(tree: Tree) -> None:
        top = directory(tree, ROOT, b"top")
        below = directory(tree, top, b"below")
        file = tree.create(below, b"file", stat.S_IFREG | 0o644, 0, 0)
        kernel = Known(tree)
        assert kernel.may_show(InodeChanged(ROOT))
        assert not kernel.may_show(InodeChanged(top))
        assert not kernel.may_show(InodeChanged(below))
        kernel.asked(ROOT, b"top")
        assert kernel.may_show(InodeChanged(top))
        assert not kernel.may_show(InodeChanged(below))
        kernel.asked(top)
        assert kernel.may_show(InodeChanged(below))
        # Any of its names may be what the kernel knows it by.
        assert kernel.may_show(InodeChanged(file))
        assert kernel.may_show(InodeChanged(Ino(10**6)))

    with_tree(tmp_path, check)


def test_all_is_known_when_it_is_not_known_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "DIRECTORIES_MAX", 3)

    def check(tree: Tree) -> None:
        unseen = directory(tree, ROOT, b"unseen")
        by_handle, many = Known(tree), Known(tree)
        by_handle.asked(ROOT, b"..")
        made = [directory(tree, ROOT, b"%d" % number) for number in range(4)]
        for ino in made[:3]:
            many.told(ino, DIRECTORY)
        assert by_handle.may_show(EntryChanged(unseen, b"x"))
        assert not many.may_show(EntryChanged(unseen, b"x"))
        many.told(made[3], DIRECTORY)
        many.told(made[3], DIRECTORY)
        assert many.may_show(EntryChanged(unseen, b"x"))
        # When the kernel has forgotten what was too much, single ones are known again.
        many.forgotten(made[3], 1)
        assert many.may_show(EntryChanged(unseen, b"x"))
        many.forgotten(made[3], 1)
        assert not many.may_show(EntryChanged(unseen, b"x"))

    with_tree(tmp_path, check)


def test_what_was_forgotten_is_known_no_more_and_what_overtook_it_is(tmp_path: Path) -> None:
    def check(tree: Tree) -> None:
        seen = directory(tree, ROOT, b"seen")
        kernel = Known(tree)
        kernel.asked(ROOT, b"seen")
        kernel.told(seen, DIRECTORY)
        kernel.told(seen, DIRECTORY)
        kernel.asked(seen, b"name")
        assert kernel.may_show(EntryChanged(seen, b"name"))
        # It is told once more before it says that it has forgotten the first two.
        kernel.told(seen, DIRECTORY)
        kernel.forgotten(seen, 2)
        assert kernel.may_show(EntryChanged(seen, b"name"))
        kernel.forgotten(seen, 1)
        assert not kernel.may_show(EntryChanged(seen, b"name"))
        kernel.told(seen, DIRECTORY)
        assert not kernel.may_show(EntryChanged(seen, b"name"))
        # Files are not kept count of.
        kernel.told(Ino(1000), stat.S_IFREG)
        kernel.forgotten(Ino(1000), 1)
        assert kernel.may_show(EntryChanged(ROOT, b"x"))

    with_tree(tmp_path, check)
