"""Finding the way along a path: links, permissions and errors, as the kernel has them."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cafs.errors import FsError
from cafs.newstore import create
from cafs.store import Store, open_store
from cafs.tree import permissions, walk
from cafs.tree.permissions import Entry
from cafs.tree.tree import Tree
from cafs.tree.walk import READ, SEARCH, WRITE, Caller
from cafs.types import ROOT, Ino
from tests.model.storethread import QUIET
from tests.unit.small_store import PARAMS

ROOT_USER = Caller(0, 0)
OWNER, MEMBER, OTHER = Caller(10, 20), Caller(11, 21, frozenset({20})), Caller(12, 22)
DIRECTORY, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, ALL = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def with_tree(tmp_path: Path, check: Callable[[Tree], None]) -> None:
    create(tmp_path / "store", PARAMS)

    async def main() -> None:
        store: Store
        async with open_store(tmp_path / "store", QUIET) as store:
            check(store.tree)

    trio.run(main)


def names(text: str) -> list[bytes]:
    return [part.encode() for part in text.split("/") if part]


def number(tree: Tree, text: str, caller: Caller = ROOT_USER) -> int:
    """The errno that finding a path ends with; 0 when it is there."""
    try:
        walk.find(tree, names(text), caller)
    except FsError as error:
        return error.errno
    return 0


def test_links_and_errors(tmp_path: Path) -> None:
    def check(tree: Tree) -> None:
        a = tree.create(ROOT, b"a", DIRECTORY, 0, 0)
        b = tree.create(a, b"b", DIRECTORY, 0, 0)
        file = tree.create(b, b"file", FILE, 0, 0)
        for parent, name, target in [
            (ROOT, "to-file", "a/b/file"),
            (b, "up", "../../a"),
            (b, "here", "./././file"),
            (ROOT, "to-dir", "a//b/"),
            (ROOT, "nowhere", "a/absent"),
            (ROOT, "out", "../etc/passwd"),
            (b, "out", "../../../etc"),
            (ROOT, "absolute", "/etc/passwd"),
            (ROOT, "self", "self"),
            (ROOT, "ping", "pong"),
            (ROOT, "pong", "ping"),
        ]:
            tree.create(parent, name.encode(), LINK, 0, 0, target=target.encode())
        found = walk.find
        assert found(tree, [], ROOT_USER) == ROOT
        for text in ("a/b/file", "to-file", "to-dir/file", "a/b/up/b/file", "to-dir/up/b/here"):
            assert found(tree, names(text), ROOT_USER) == file, text
        assert found(tree, names("a/b/up"), ROOT_USER) == a
        for text, expected in [
            ("absent", errno.ENOENT),
            ("a/absent/x", errno.ENOENT),
            ("nowhere", errno.ENOENT),
            ("a/b/file/x", errno.ENOTDIR),
            ("to-file/x", errno.ENOTDIR),
            ("x" * 256, errno.ENAMETOOLONG),
            ("out", errno.EACCES),
            ("a/b/out", errno.EACCES),
            ("absolute", errno.EACCES),
            ("self", errno.ELOOP),
            ("ping/x", errno.ELOOP),
        ]:
            assert number(tree, text) == expected, text
        link = walk.locate(tree, names("to-file"), ROOT_USER, follow=False)
        assert (link.parent, link.name) == (ROOT, b"to-file") and link.ino != file
        new = walk.locate(tree, names("to-dir/up/b/new"), ROOT_USER, follow=False)
        assert new == (b, b"new", None)
        assert walk.locate(tree, [], ROOT_USER, follow=True) == (ROOT, b"", ROOT)

    with_tree(tmp_path, check)


def test_a_chain_of_links_is_bounded(tmp_path: Path) -> None:
    def check(tree: Tree) -> None:
        tree.create(ROOT, b"0", FILE, 0, 0)
        for each in range(1, walk.LINKS_MAX + 2):
            target = str(each - 1).encode()
            tree.create(ROOT, str(each).encode(), LINK, 0, 0, target=target)
        assert number(tree, str(walk.LINKS_MAX)) == 0
        assert number(tree, str(walk.LINKS_MAX + 1)) == errno.ELOOP

    with_tree(tmp_path, check)


def test_modes(tmp_path: Path) -> None:
    def check(tree: Tree) -> None:
        directory = tree.create(ROOT, b"d", stat.S_IFDIR | 0o710, 10, 20)
        tree.create(directory, b"f", stat.S_IFREG | 0o640, 10, 20)
        expected = [(ROOT_USER, 0), (OWNER, 0), (MEMBER, 0), (OTHER, errno.EACCES)]
        for caller, result in expected:
            assert number(tree, "d/f", caller) == result
            assert number(tree, "d", caller) == 0
        file = Ino(directory + 1)

        def may(caller: Caller, wanted: int, mode: int) -> bool:
            attr = tree.inodes.get(file)._replace(mode=stat.S_IFREG | mode)
            return walk.may(tree, file, attr, caller, wanted)

        assert may(OWNER, READ | WRITE, 0o600)
        assert not may(OWNER, READ, 0o077), "the owner's bits count, not the others'"
        assert may(MEMBER, READ, 0o040) and not may(MEMBER, READ, 0o404)
        assert may(OTHER, READ, 0o004) and not may(OTHER, READ, 0o440)
        assert may(ROOT_USER, READ | WRITE | SEARCH, 0)

    with_tree(tmp_path, check)


@pytest.mark.parametrize(
    ("caller", "wanted", "allowed"),
    [
        (Caller(31, 99), READ, True),
        (Caller(31, 99), WRITE, False),  # taken away by the mask
        (Caller(32, 99), READ, False),  # named, with nothing
        (Caller(99, 20), READ, True),
        (Caller(99, 41), READ, True),
        (Caller(99, 98, frozenset({41})), READ, True),
        (Caller(99, 42), READ, False),  # a named group without it keeps others' bits off
        (Caller(99, 98), SEARCH, True),
        (Caller(99, 98), READ, False),
    ],
)
def test_acls(tmp_path: Path, caller: Caller, wanted: int, allowed: bool) -> None:
    entries = [
        Entry(USER_OBJ, 7, 0),
        Entry(USER, 6, 31),
        Entry(USER, 0, 32),
        Entry(GROUP_OBJ, 4, 0),
        Entry(GROUP, 4, 41),
        Entry(GROUP, 0, 42),
        Entry(MASK, 5, 0),
        Entry(ALL, 1, 0),
    ]

    def check(tree: Tree) -> None:
        file = tree.create(ROOT, b"f", stat.S_IFREG | 0o751, 10, 20)
        tree.xattrs.put(file, permissions.ACCESS, permissions.format_acl(entries))
        attr = tree.inodes.get(file)
        assert walk.may(tree, file, attr, caller, wanted) is allowed

    with_tree(tmp_path, check)
