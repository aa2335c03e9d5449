"""A small real store with a bit of everything, and ways to damage single records of it.

Made through cafs.store, without a mount, so that a test needs neither root nor a kernel.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from cafs import newstore
from cafs.config import MountOptions, StoreParams
from cafs.index import layout
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.overlay import Layer
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.operate.check import Check
from cafs.store import Store, open_store
from cafs.types import ROOT, Attr, Ino
from cafs.view import View
from tests.model.audit import audit

T = TypeVar("T")

PARAMS = StoreParams(chunk_min=1024, chunk_avg=4096, chunk_max=8192)
OPTIONS = MountOptions(reserve=1 << 20)


def noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, the same ones for the same seed."""
    import random

    return random.Random(seed).randbytes(length)


async def write(store: Store, parent: Ino, name: bytes, data: bytes) -> Ino:
    """Make a file."""
    ino = store.tree.create(parent, name, stat.S_IFREG | 0o644, 0, 0)
    store.contents.opened(ino, writable=True)
    for start in range(0, len(data), 1 << 20):
        await store.contents.write(ino, start, data[start : start + (1 << 20)], privileged=True)
    await store.contents.settle(ino)
    store.contents.closed(ino, writable=True)
    return ino


async def _fill(path: Path) -> None:
    async with open_store(path, OPTIONS) as store:
        tree = store.tree
        a = tree.create(ROOT, b"a", stat.S_IFDIR | 0o755, 0, 0)
        b = tree.create(a, b"b", stat.S_IFDIR | 0o755, 0, 0)
        small = await write(store, a, b"small", b"a few bytes")
        await write(store, b, b"large", noise(1, 3_000_000))
        await write(store, b, b"again", noise(1, 3_000_000))
        await write(store, a, b"middle", noise(2, 40_000))
        tree.create(a, b"empty", stat.S_IFREG | 0o600, 0, 0)
        tree.create(a, b"link", stat.S_IFLNK | 0o777, 0, 0, target=b"small")
        tree.link(small, b, b"hard")
        tree.xattrs.put(small, b"user.colour", b"blue")
        await store.sync_all()


def make(path: Path) -> Path:
    """Make it at *path*."""
    newstore.create(path, PARAMS)
    trio.run(_fill, path)
    return path


def in_store(
    path: Path, work: Callable[[Store], Awaitable[T]], options: MountOptions = OPTIONS
) -> T:
    """Run *work* on a store, which is opened for it."""

    async def main() -> T:
        async with open_store(path, options) as store:
            return await work(store)

    return trio.run(main)


def change(store: Path, database: int, key: bytes, value: bytes | None) -> None:
    """Write one record behind everybody's back."""
    layer: Layer = [{} for _ in layout.DATABASES]
    layer[database][key] = value
    lock = StoreLock(store)
    writer = IndexWriter(store / "index", lock.fd)
    try:
        writer.write(layer)
    finally:
        writer.close()
        lock.release()


def untold(done: int, total: int, /, waiting_s: float = 0.0) -> None:
    """For who wants to hear nothing of the progress."""


def findings(store: Path) -> Counter[str]:
    """The kinds of what a check finds, counted."""
    with View(store) as view:
        return Counter(finding.kind for finding in Check(view).findings())


def assert_sound(store: Path) -> None:
    """Fail unless every count and reference in a closed store is right, twice over."""
    faults = audit(store)
    assert not faults, faults
    with View(store) as view:
        found = list(Check(view).findings())
    assert not found, found


def lookup(store: Path, path: bytes) -> tuple[Ino, Attr]:
    """An inode by its path."""
    with View(store) as view:
        ino = ROOT
        for name in path.split(b"/"):
            found = view.tree.lookup(ino, name)
            assert found is not None, path
            ino = found
        return ino, view.tree.inodes.get(ino)


__all__ = [
    "COUNTERS_KEY",
    "OPTIONS",
    "assert_sound",
    "change",
    "findings",
    "in_store",
    "lookup",
    "make",
    "noise",
    "untold",
    "write",
]
