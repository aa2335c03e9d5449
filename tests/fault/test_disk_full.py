"""A small real disk, filled until nothing more goes in.

Writers get ENOSPC, readers notice nothing, deleting works and gives the space back, the daemon
goes on by itself, and what was acknowledged is there to the last byte.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cafs.errors import DiskFullError
from cafs.index import layout
from cafs.index.overlay import Layer
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from tests.fault.smalldisk import MIB, SmallDisk, SmallDiskMount, wait_until
from tests.model.audit import audit

pytestmark = pytest.mark.timeout(180)

FULL_LOG = r"is full|using the reserve|commit failed|waits for room|cannot store|no room|stopped"


@pytest.fixture
def mount(disk: SmallDisk) -> Iterator[SmallDiskMount]:
    mount = SmallDiskMount(
        disk,
        *("--grace", "0s", "--commit-interval", "200ms"),
        init=("--pack-size", "4MiB"),
    )
    mount.announce(FULL_LOG)
    try:
        mount.start()
        yield mount
        stray = mount.unexpected_log_lines()
    finally:
        mount.close()
    assert not stray, "\n".join(stray)


class Filler:
    """Writes files that do not compress, and remembers those that fsync acknowledged."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._random = random.Random(7)
        self.acknowledged: dict[str, bytes] = {}
        self.errors: list[int] = []

    def write(self, name: str, size: int = MIB) -> bool:
        """Write one file; False when the disk did not take it."""
        data = self._random.randbytes(size)
        try:
            fd = os.open(self._root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view[: 128 << 10]) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            assert error.errno is not None
            self.errors.append(error.errno)
            return False
        self.acknowledged[name] = hashlib.sha256(data).digest()
        return True

    def until_full(self) -> None:
        """Write until ten files in a row were refused."""
        refused = number = 0
        while refused < 10:
            assert number < 1000, "the disk never becomes full"
            refused = 0 if self.write(f"file{number}") else refused + 1
            number += 1
        assert set(self.errors) == {errno.ENOSPC}

    def check(self) -> None:
        """All that was acknowledged is there and whole."""
        assert self.acknowledged, "nothing was acknowledged: this shows nothing"
        for name, digest in self.acknowledged.items():
            data = (self._root / name).read_bytes()
            assert hashlib.sha256(data).digest() == digest, name

    def remove(self, names: list[str]) -> None:
        """Delete some; whatever was refused half-way is left."""
        for name in names:
            os.unlink(self._root / name)
            del self.acknowledged[name]


def forget_pages(mount: SmallDiskMount) -> None:
    """Let reads reach the daemon again."""
    mount.forget()


def test_writers_get_enospc_and_readers_notice_nothing(mount: SmallDiskMount) -> None:
    filler = Filler(mount.root)
    filler.until_full()
    assert len(filler.acknowledged) > 30, "most of the disk can be used"
    forget_pages(mount)
    filler.check()
    health = mount.status()["health"]
    assert health["state"] == "trouble"
    assert "full" in health["problem"]
    assert "delete" in health["what_to_do"]
    assert "is full" in mount.log_text() and "what to do: delete files" in mount.log_text()
    # What needs room is refused, what needs none is not.
    with pytest.raises(OSError) as refused:
        # What is left takes some directories, but not any number of them.
        for number in range(100_000):
            (mount.root / f"directory{number}").mkdir()
    assert refused.value.errno == errno.ENOSPC
    os.chmod(mount.root / next(iter(filler.acknowledged)), 0o600)
    mount.unmount()
    assert not audit(mount.store)
    mount.start()
    filler.check()


def test_deleting_gives_the_space_back_and_the_daemon_goes_on(mount: SmallDiskMount) -> None:
    filler = Filler(mount.root)
    filler.until_full()
    before = mount.disk.free
    # Not all in a row: then few packs are all dead, and what lives in them has to be moved.
    filler.remove([name for number, name in enumerate(filler.acknowledged) if number % 4])
    try:
        wait_until("space comes back", lambda: mount.disk.free > before + 8 * MIB)
    except AssertionError:
        print(mount.log_text(), mount.status(), os.listdir(mount.store / "packs"))
        raise
    wait_until("all is well", lambda: mount.status()["health"]["state"] == "ok")
    assert filler.write("after", 4 * MIB), "writing goes on by itself"
    filler.check()
    mount.unmount()
    assert not audit(mount.store)


def test_everything_is_deleted_from_a_full_disk(mount: SmallDiskMount) -> None:
    empty = mount.disk.free
    filler = Filler(mount.root)
    filler.until_full()
    for entry in list(os.scandir(mount.root)):
        os.unlink(entry)
    wait_until("the space is back", lambda: mount.disk.free > 0.9 * empty)
    assert filler.write("again", 8 * MIB)


def test_the_one_large_pack_of_a_small_disk_is_given_back(disk: SmallDisk) -> None:
    """With the usual size of packs all lies in one, which still takes chunks."""
    mount = SmallDiskMount(disk, "--grace", "0s", "--commit-interval", "200ms")
    try:
        mount.start()
        empty = disk.free
        filler = Filler(mount.root)
        filler.until_full()
        for entry in list(os.scandir(mount.root)):
            os.unlink(entry)
        wait_until("the space is back", lambda: disk.free > 0.9 * empty)
        assert filler.write("again", 8 * MIB)
    finally:
        mount.close()


def _has_free(disk: SmallDisk, wanted: int) -> bool:
    return disk.free >= wanted


def test_what_was_deleted_of_large_packs_is_given_back(disk: SmallDisk) -> None:
    """Most of the only pack is alive, and there is no room for a copy of that."""
    mount = SmallDiskMount(disk, "--grace", "1s", "--commit-interval", "200ms")
    mount.announce(FULL_LOG)
    try:
        mount.start()
        filler = Filler(mount.root)
        filler.until_full()
        for turn in range(3):
            wanted = disk.free + 6 * MIB
            filler.remove(list(filler.acknowledged)[turn :: 5 - turn])
            wait_until("the space is back", partial(_has_free, disk, wanted))
            wait_until("all is well", lambda: mount.status()["health"]["state"] == "ok")
            forget_pages(mount)
            filler.check()
            while filler.write(f"again{turn}-{len(filler.acknowledged)}"):
                pass
        mount.kill()
        mount.start()
        filler.check()
        mount.unmount()
        assert not audit(mount.store)
        assert "clean" in mount.run("check", str(mount.store))
        mount.run("scrub", str(mount.store))
    finally:
        mount.close()


def test_many_small_changes_fill_the_index_and_can_be_undone(mount: SmallDiskMount) -> None:
    """Names alone fill a disk, too; what was let in can be committed, and removed again."""
    mount.disk.fill(leave=6 * MIB)
    (mount.root / "d").mkdir()
    number = 0
    with pytest.raises(OSError) as refused:
        for number in range(200_000):
            os.symlink("x" * 200, mount.root / "d" / f"name-{number:08d}")
    assert refused.value.errno == errno.ENOSPC
    assert number > 1000
    handle = os.open(mount.root / "d", os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    assert len(os.listdir(mount.root / "d")) == number
    for name in os.listdir(mount.root / "d"):
        os.unlink(mount.root / "d" / name)
    os.rmdir(mount.root / "d")
    mount.unmount()
    assert not audit(mount.store)


def test_somebody_elses_file_fills_the_disk(mount: SmallDiskMount) -> None:
    filler = Filler(mount.root)
    for number in range(4):
        assert filler.write(f"before{number}")
    # Open and half written when the disk becomes full: this was let in, so it is kept.
    begun = os.open(mount.root / "begun", os.O_WRONLY | os.O_CREAT)
    os.write(begun, b"let in " * 1000)
    foreign = mount.disk.fill()
    assert not filler.write("refused")
    assert filler.errors == [errno.ENOSPC]
    filler.check()
    wait_until("it is said", lambda: mount.status()["health"]["state"] == "trouble")
    try:
        os.fsync(begun)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    foreign.unlink()
    wait_until("all is well", lambda: mount.status()["health"]["state"] == "ok")
    os.fsync(begun)
    os.close(begun)
    assert filler.write("after")
    assert (mount.root / "begun").read_bytes() == b"let in " * 1000
    filler.check()


def test_a_kill_on_a_full_disk_loses_nothing(mount: SmallDiskMount) -> None:
    filler = Filler(mount.root)
    filler.until_full()
    mount.disk.fill()
    mount.kill()
    mount.start()
    filler.check()
    filler.remove(list(filler.acknowledged)[:20])
    (mount.disk.path / "of-somebody-else").unlink()
    wait_until("writing goes on", lambda: filler.write("after"))
    filler.check()
    mount.unmount()
    assert not audit(mount.store)


def test_deleting_is_committed_on_a_disk_without_a_free_byte(mount: SmallDiskMount) -> None:
    """That is what the reserve is for."""
    filler = Filler(mount.root)
    for number in range(8):
        assert filler.write(f"file{number}", 100_000)
    # A thousand names more, so that what is deleted takes many pages of the index.
    for number in range(1000):
        os.symlink("target", mount.root / f"link{number}")
    root = os.open(mount.root, os.O_RDONLY)
    os.fsync(root)
    mount.disk.fill()
    for number in range(1000):
        os.unlink(mount.root / f"link{number}")
    filler.remove(["file0"])
    os.fsync(root)
    os.close(root)
    mount.kill()
    mount.start()
    assert sorted(os.listdir(mount.root)) == sorted(filler.acknowledged)
    filler.check()


def test_the_index_writer_tells_a_full_disk_from_a_broken_one(disk: SmallDisk) -> None:
    """LMDB answers EIO when the disk took only a part of a write; and it must go on later."""
    (disk.path / "index").mkdir()
    lock = StoreLock(disk.path)
    writer = IndexWriter(disk.path / "index", lock.fd)
    layer: Layer = [{} for _ in layout.DATABASES]
    try:
        writer.write(layer)
        layer[layout.INODES] = {layout.u48(number): bytes(500) for number in range(2000)}
        foreign = disk.fill(leave=100_000)
        for _ in range(3):
            with pytest.raises(DiskFullError):
                writer.write(layer)
        foreign.unlink()
        writer.write(layer)
    finally:
        writer.close()
        lock.release()
