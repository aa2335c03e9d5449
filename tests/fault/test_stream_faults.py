"""A long file is written while the disk fails once, at each of its writes in turn.

Two batches of a stream are under way at a time: what fails takes the one behind it along, and
both are stored by the next try, in order.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
import trio

from cafs.config import MountOptions, StoreParams
from cafs.errors import CafsError
from cafs.newstore import create
from cafs.store import open_store
from cafs.types import ROOT
from tests.fault.faulty import Fault, FaultyDisk

PIECE = 256 << 10
DATA = random.Random(7).randbytes(9 * (1 << 20) + 777)


async def write_through(path: Path, disk: FaultyDisk) -> None:
    async with open_store(path, MountOptions(), disk=disk) as store:
        ino = store.tree.create(ROOT, b"file", 0o100644, 0, 0)
        store.contents.opened(ino, writable=True)
        for start in range(0, len(DATA), PIECE):
            await store.contents.write(ino, start, DATA[start : start + PIECE], privileged=True)
            # Let batches begin and end between the writes, as they do under a mount.
            await trio.sleep(0)
        try:
            await store.sync_file(ino)
        except CafsError:
            await store.sync_file(ino)
        assert await store.contents.read(ino, 0, len(DATA)) == DATA
        store.contents.closed(ino, writable=True)
        await store.sync_all()
        assert not store.chunks.landing_packs()
        attr = store.tree.inodes.get(ino)
        assert store.blobs.get(attr.blob).size == attr.size == len(DATA)


@pytest.mark.parametrize("at", [2, 3, 4, 5, 6])
def test_a_write_that_fails_once_loses_nothing(tmp_path: Path, at: int) -> None:
    create(tmp_path / "store", StoreParams())
    disk = FaultyDisk([Fault(at, errno.EIO, "pwrite_all")])
    trio.run(write_through, tmp_path / "store", disk)
    assert disk.all_fired
