"""Every point of a commit at which the disk can fail.

One piece of work is done again and again, each time with the next change of a store file
failing.  What was acknowledged must be there afterwards, whoever waited must have heard of the
fault, and once the disk is well the store must go on as if nothing had been.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from cafs.config import MountOptions
from cafs.errors import (
    CafsError,
    ChunkDamagedError,
    DiskError,
    DiskFullError,
    ReadOnlyError,
    first_foreseen,
)
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ROOT, PackNo
from cafs.view import View
from tests.fault.faulty import Fault, FaultyDisk
from tests.fault.volatile import VolatileDisk
from tests.model.audit import audit
from tests.model.storethread import StoreThread
from tests.model.test_draft import SMALL

QUIET = MountOptions(commit_interval=60.0, ingest_threads=1)
POINTS_MAX = 200
_random = random.Random(4)
FIRST = _random.randbytes(60_000)
SECOND = _random.randbytes(40_000)
PATCH = _random.randbytes(500)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A store with one committed file, and a pack that takes more."""
    path = tmp_path / "template"
    create(path, SMALL)
    thread = StoreThread(path, QUIET)
    thread.run(lambda store: Work(store).write(b"old", 0, FIRST))
    thread.close()
    return path


@pytest.fixture
def fresh(template: Path, tmp_path: Path) -> Iterator[Path]:
    """Where copies of the template are worked on."""
    yield tmp_path / "store"


def copy_of(template: Path, path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(template, path)
    return path


class Work:
    """What is done to a store, and what of it was acknowledged."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.content: dict[bytes, bytearray] = {b"old": bytearray(FIRST)}
        self.allowed: dict[bytes, list[bytes]] = {b"old": [FIRST]}
        # What a file may be after a crash: as acknowledged, or as written since.
        self.faults: list[CafsError] = []

    async def write(self, name: bytes, offset: int, data: bytes) -> None:
        store = self._store
        ino = store.tree.lookup(ROOT, name) or store.tree.create(ROOT, name, 0o100644, 0, 0)
        content = self.content.setdefault(name, bytearray())
        store.contents.opened(ino, writable=True)
        try:
            await store.contents.write(ino, offset, data, privileged=True)
            content += bytes(max(0, offset - len(content)))
            content[offset : offset + len(data)] = data
            if name in self.allowed:
                self.allowed[name].append(bytes(content))
            await store.sync_file(ino)
            self.allowed[name] = [bytes(content)]
        except CafsError as error:
            self.faults.append(error)
        finally:
            store.contents.closed(ino, writable=True)

    async def do(self) -> None:
        await self.write(b"new", 0, SECOND)
        await self.write(b"old", 30_000, PATCH)
        await self.write(b"new", len(SECOND), PATCH)
        self._store.packs.roll()
        await self.write(b"third", 10, PATCH)

    def acknowledge_all(self) -> None:
        """Everything was synced."""
        self.allowed = {name: [bytes(data)] for name, data in self.content.items()}

    async def compare(self) -> None:
        """The daemon is still there: not a byte that was written may be missing."""
        for name, content in self.content.items():
            ino = self._store.tree.lookup(ROOT, name)
            assert ino is not None
            assert await self._store.contents.read(ino, 0, 1 << 20) == content, name


def one_point(path: Path, disk: FaultyDisk, end: str) -> Work:
    """Do the work on a disk with a fault; then it heals, or all ends; check what is left."""
    thread = StoreThread(path, QUIET, disk)
    work = Work(thread.store)
    thread.run(lambda store: work.do())
    if end != "heal":
        thread.crash()
        if isinstance(disk, VolatileDisk):
            disk.power_loss()
    else:
        thread.run(lambda store: work.compare())
        disk.heal()
        thread.run(lambda store: store.sync_all())
        work.acknowledge_all()
        assert thread.store.status()["health"]["state"] == "ok"
        thread.close()
    check_what_is_left(path, work)
    return work


def check_what_is_left(path: Path, work: Work) -> None:
    faults = audit(path)
    assert not faults, faults
    with View(path) as view:
        found = {}
        for entry in view.tree.listing(ROOT, 0):
            blob = view.tree.inodes.get(entry.ino).blob
            found[entry.name] = b"".join(view.content(blob)) if blob else b""
    for name, allowed in work.allowed.items():
        assert found.get(name) in allowed, f"{name!r} was acknowledged"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "end"),
    [
        (errno.ENOSPC, "heal"),
        (errno.EIO, "heal"),
        (errno.EIO, "power loss"),
        pytest.param(errno.ENOSPC, "kill", marks=pytest.mark.slow),
        pytest.param(errno.ENOSPC, "power loss", marks=pytest.mark.slow),
        pytest.param(errno.EIO, "kill", marks=pytest.mark.slow),
    ],
)
def test_each_change_of_a_pack_or_spool_may_fail(
    template: Path, fresh: Path, number: int, end: str
) -> None:
    reported = 0
    for point in range(1, POINTS_MAX):
        path = copy_of(template, fresh)
        faults = [Fault(point, number)]
        disk = VolatileDisk(path / "packs", faults) if end == "power loss" else FaultyDisk(faults)
        work = one_point(path, disk, end)
        if not disk.all_fired:
            break
        reported += bool(work.faults)
    else:
        raise AssertionError("the work has more points than expected")
    assert point > 10, "the work is expected to change files more often"
    # A sidecar that finds no room, and a reserve that is given up, need not be reported.
    assert reported >= point // 3


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, DiskFullError), (errno.EIO, DiskError), (errno.EROFS, ReadOnlyError)],
)
def test_a_disk_that_stays_ill_is_reported_and_overcome(
    template: Path, number: int, expected: type[CafsError]
) -> None:
    disk = FaultyDisk([Fault(1, number, sticky=True)])
    work = one_point(template, disk, "heal")
    assert disk.all_fired
    assert len(work.faults) == 4, "each that waited hears of it"
    assert all(type(error) is expected for error in work.faults)


def test_writers_are_not_held_up_by_a_disk_that_is_ill(template: Path) -> None:
    """More is written than may wait in memory, by several at once, and nothing can be stored."""
    disk = FaultyDisk([Fault(1, errno.EIO, sticky=True)])
    options = MountOptions(commit_interval=0.05, pending_bytes=8 << 20, ingest_threads=1)
    thread = StoreThread(template, options, disk)
    block = _random.randbytes(1 << 20)

    async def write(store: Store, number: int, errors: list[CafsError], rounds: int) -> None:
        name = b"large%d" % number
        ino = store.tree.lookup(ROOT, name) or store.tree.create(ROOT, name, 0o100644, 0, 0)
        store.contents.opened(ino, writable=True)
        for _ in range(rounds):
            size = store.contents.attr(ino).size
            try:
                await store.contents.write(ino, size, block, privileged=True)
            except CafsError as error:
                errors.append(error)
        store.contents.closed(ino, writable=True)

    async def write_at_once(store: Store, errors: list[CafsError], rounds: int) -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(write, store, number, errors, rounds)

    refused: list[CafsError] = []
    thread.run(lambda store: write_at_once(store, refused, 4))
    assert refused and all(type(error) is DiskError for error in refused)
    disk.heal()
    thread.run(lambda store: store.sync_all())
    later: list[CafsError] = []
    thread.run(lambda store: write_at_once(store, later, 8))
    assert not later, "several who wait are all let go on"
    thread.close()
    assert not audit(template)


def test_status_names_the_trouble_and_what_to_do(template: Path) -> None:
    disk = FaultyDisk([Fault(1, errno.EIO, sticky=True)])
    thread = StoreThread(template, QUIET, disk)
    work = Work(thread.store)
    thread.run(lambda store: work.do())
    thread.run(lambda store: store.contents.settle_all())
    health = thread.store.status()["health"]
    assert health["state"] == "trouble"
    assert "Input/output error" in health["problem"]
    assert "dmesg" in health["what_to_do"]
    disk.heal()
    thread.run(lambda store: store.sync_all())
    assert thread.store.status()["health"]["state"] == "ok"
    thread.close()


async def _do(work: Work, store: Store) -> None:
    await work.do()


async def _compare(work: Work, store: Store) -> None:
    await work.compare()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("crash", [False, True], ids=["heal", "crash"])
def test_the_index_may_fail_at_each_page_that_it_grows_by(
    template: Path, fresh: Path, crash: bool
) -> None:
    """The kernel lets the index grow so far and no further, a page more each time."""
    failed = 0
    for pages in range(64):
        path = copy_of(template, fresh)
        limit = (path / "index" / "data.mdb").stat().st_size + pages * 4096
        thread = StoreThread(path, QUIET)
        pid = thread.store._writer.pid
        unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        work = Work(thread.store)
        thread.run(partial(_do, work))
        if crash:
            thread.crash()
        else:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
            thread.run(lambda store: store.sync_all())
            assert thread.store._writer.pid == pid, "an error is no reason to die"
            thread.run(partial(_compare, work))
            work.acknowledge_all()
            thread.close()
        check_what_is_left(path, work)
        if not work.faults:
            break
        failed += 1
    assert 1 <= failed < 64


@pytest.mark.parametrize("end", ["close", "sync"])
def test_what_gathered_behind_a_commit_that_failed_is_stored_with_it(
    template: Path, end: str
) -> None:
    """The commit that is tried again holds what was there when it failed, and nothing since."""
    thread = StoreThread(template, QUIET)
    pid = thread.store._writer.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    work = Work(thread.store)
    thread.run(lambda store: work.write(b"second", 0, SECOND))
    assert len(work.faults) == 1
    assert thread.store.overlay.frozen
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)

    async def gather(store: Store) -> None:
        ino = store.tree.create(ROOT, b"third", 0o100644, 0, 0)
        store.contents.opened(ino, writable=True)
        await store.contents.write(ino, 0, FIRST, privileged=True)
        store.contents.closed(ino, writable=True)
        if end == "sync":
            await store.sync_file(ino)

    thread.run(gather)
    work.content[b"third"] = bytearray(FIRST)
    work.acknowledge_all()
    if end == "close":
        thread.close()
    else:
        thread.crash()
    check_what_is_left(template, work)


def test_a_file_that_cannot_be_stored_costs_nothing_else_at_the_end(template: Path) -> None:
    """Nor does it when the last commit has to be made in two steps, after one that failed."""
    thread = StoreThread(template, QUIET)
    pid = thread.store._writer.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)

    async def patch_damaged(store: Store) -> None:
        ino = store.tree.lookup(ROOT, b"old")
        assert ino is not None
        with open(store.packs.pack_path(PackNo(1)), "r+b") as pack:
            pack.seek(pack.seek(0, os.SEEK_END) // 2)
            pack.write(bytes(8000))
        store.contents.opened(ino, writable=True)
        for offset in range(0, len(FIRST), 1000):
            await store.contents.write(ino, offset, b"patch", privileged=True)

    thread.run(patch_damaged)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    work = Work(thread.store)
    thread.run(lambda store: work.write(b"second", 0, SECOND))
    assert len(work.faults) == 1
    assert thread.store.overlay.frozen
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)

    async def gather(store: Store) -> None:
        ino = store.tree.create(ROOT, b"third", 0o100644, 0, 0)
        store.contents.opened(ino, writable=True)
        await store.contents.write(ino, 0, FIRST, privileged=True)
        store.contents.closed(ino, writable=True)
        store.tree.create(ROOT, b"fourth", 0o40755, 0, 0)

    thread.run(gather)
    with pytest.raises(ExceptionGroup) as caught:
        thread.close()
    problem = first_foreseen(caught.value)
    assert isinstance(problem, ChunkDamagedError)
    assert " 0 changes of the index" in str(problem)
    with View(template) as view:
        for name in (b"second", b"third", b"fourth"):
            assert view.tree.lookup(ROOT, name) is not None, name


def test_the_index_writer_may_be_killed_before_any_commit(template: Path) -> None:
    """Its death is no fault of the store's: the work is given to a new one."""
    thread = StoreThread(template, QUIET)
    work = Work(thread.store)
    process = thread.store._writer.start()
    process.kill()
    thread.run(lambda store: work.do())
    assert not work.faults
    assert thread.store._writer.pid != process.pid
    thread.close()
    work.acknowledge_all()
    check_what_is_left(template, work)
