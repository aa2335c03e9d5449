"""What the mount's handlers answer, asked without a kernel."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from cafs.config import MountOptions
from cafs.errors import IndexDamagedError
from cafs.mount.damage import DamageReporter
from cafs.mount.handlers import Handlers
from cafs.mount.invalidate import Invalidator
from cafs.mount.known import Known
from cafs.mount.xattr_handlers import in_group
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ROOT, Attr, Ino
from tests.model.storethread import QUIET
from tests.unit.small_store import PARAMS, in_store

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
FEW = MountOptions(commit_interval=60.0, overlay_limit=1000)
CALLER: Any = SimpleNamespace(uid=1000, gid=1000, pid=0)


def ask(
    path: Path,
    work: Callable[[Store, Handlers], Awaitable[None]],
    options: MountOptions = QUIET,
) -> None:
    create(path, PARAMS)

    async def main(store: Store) -> None:
        known = Known(store.tree)
        handlers = Handlers(store, DamageReporter(store), known, Invalidator(known))
        await work(store, handlers)

    in_store(path, main, options)


@pytest.mark.parametrize(
    ("flags", "number"), [(os.O_WRONLY, errno.ESTALE), (os.O_WRONLY | os.O_EXCL, errno.EEXIST)]
)
def test_a_file_that_came_meanwhile_is_looked_at_again(
    tmp_path: Path, flags: int, number: int
) -> None:
    async def work(store: Store, handlers: Handlers) -> None:
        store.tree.create(ROOT, b"file", FILE, 0, 0)
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await handlers.create(ROOT, b"file", FILE, flags | os.O_CREAT, CALLER)
        assert caught.value.errno == number

    ask(tmp_path / "store", work)


def test_a_directory_is_listed_though_the_one_above_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(store: Store, handlers: Handlers) -> None:
        above = store.tree.create(ROOT, b"above", DIRECTORY, 0, 0)
        directory = store.tree.create(above, b"dir", DIRECTORY, 0, 0)
        store.tree.create(directory, b"file", FILE, 0, 0)
        get = store.tree.inodes.get

        def damaged(ino: Ino) -> Attr:
            if ino == above:
                raise IndexDamagedError("damaged")
            return get(ino)

        listed = []

        def reply(_token: object, name: bytes, attr: Any, _cookie: int) -> bool:
            listed.append((name, attr.st_ino, stat.S_IFMT(attr.st_mode)))
            return True

        monkeypatch.setattr(store.tree.inodes, "get", damaged)
        monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
        token: Any = None
        await handlers.readdir(directory, 0, token)
        assert [name for name, _, _ in listed] == [b".", b"..", b"file"]
        assert listed[1][1:] == (above, stat.S_IFDIR)

    ask(tmp_path / "store", work)


def test_nobody_is_in_the_groups_of_a_process_that_cannot_be_seen() -> None:
    gone: Any = SimpleNamespace(uid=1000, gid=1000, pid=2**22 + 1)
    assert in_group(1000, gone)
    assert not in_group(1001, gone)


def _attributes() -> tuple[Any, Any]:
    fields = SimpleNamespace(
        update_size=False,
        update_mode=True,
        update_uid=False,
        update_gid=False,
        update_atime=False,
        update_mtime=False,
    )
    return SimpleNamespace(st_mode=0o600), fields


@pytest.mark.parametrize("what", ["setattr", "setxattr", "removexattr", "link", "rmdir"])
def test_what_waits_for_a_commit_is_bounded_whatever_changes(tmp_path: Path, what: str) -> None:
    async def work(store: Store, handlers: Handlers) -> None:
        tree = store.tree
        inos = [tree.create(ROOT, b"%d" % number, FILE, 0, 0) for number in range(3)]
        if what == "rmdir":
            for number in range(600):
                tree.create(ROOT, b"d%d" % number, DIRECTORY, 0, 0)
        elif what == "removexattr":
            for number in range(100):
                tree.xattrs.put(inos[0], b"user.%d" % number, b"")
        await store.commit()
        most = 0
        attr, fields = _attributes()
        for number in range(1200):
            if what == "setattr":
                await handlers.setattr(inos[0], attr, fields, None, CALLER)
            elif what == "setxattr":
                await handlers.setxattr(inos[0], b"user.x", b"%d" % number, CALLER)
            elif what == "link":
                await handlers.link(inos[0], ROOT, b"l%d" % number, CALLER)
            elif what == "rmdir" and number < 600:
                await handlers.rmdir(ROOT, b"d%d" % number, CALLER)
            elif what == "removexattr":
                tree.xattrs.put(inos[0], b"user.y", b"%d" % number)
                await handlers.removexattr(inos[0], b"user.y", CALLER)
            most = max(most, store.overlay.pending)
        assert most < 1000 + 20

    ask(tmp_path / "store", work, FEW)
