"""A backing disk that takes no more changes.

ext4 is made to find an error, upon which it refuses every change (a running daemon keeps a disk
from being remounted read-only in any other way: mount(8) answers EBUSY).  That state ends with
an unmount and fsck; a disk that comes back by itself is played by the file layer.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafs.config import MountOptions
from cafs.errors import CafsError, ReadOnlyError
from cafs.newstore import create
from cafs.operate import scrub
from cafs.store import Store
from cafs.types import ROOT
from tests.fault.faulty import Fault, FaultyDisk
from tests.fault.smalldisk import SmallDisk, SmallDiskMount, wait_until
from tests.model.audit import audit
from tests.model.storethread import StoreThread
from tests.model.test_draft import SMALL

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def mount(disk: SmallDisk) -> Iterator[SmallDiskMount]:
    mount = SmallDiskMount(disk, "--commit-interval", "200ms")
    mount.announce(r"[Rr]ead-only")
    try:
        mount.start()
        yield mount
        stray = mount.unexpected_log_lines()
    finally:
        mount.close()
    assert not stray, "\n".join(stray)


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_changes_get_erofs_and_reads_go_on(mount: SmallDiskMount) -> None:
    content = os.urandom(3_000_000)
    file = mount.root / "file"
    write_synced(file, content)
    (mount.root / "directory").mkdir()
    sync_directory(mount.root)
    mount.disk.go_read_only()
    wait_until("it is noticed", lambda: mount.status()["health"]["state"] == "trouble")
    for change in (
        lambda: (mount.root / "new").write_bytes(b"x"),
        lambda: file.write_bytes(b"x"),
        lambda: file.unlink(),
        lambda: file.rename(mount.root / "other"),
        lambda: (mount.root / "directory").rmdir(),
        lambda: (mount.root / "another").mkdir(),
        lambda: os.truncate(file, 10),
        lambda: os.chmod(file, 0o600),
        lambda: os.utime(file, (1, 1)),
        lambda: os.setxattr(file, "user.name", b"value"),
        lambda: os.link(file, mount.root / "link"),
        lambda: os.symlink("target", mount.root / "symlink"),
    ):
        with pytest.raises(OSError) as refused:
            change()
        assert refused.value.errno == errno.EROFS
    mount.forget()
    assert file.read_bytes() == content
    assert sorted(os.listdir(mount.root)) == ["directory", "file"]
    assert file.stat().st_size == len(content)
    # Start scripts set what is set already.
    os.chmod(file, file.stat().st_mode & 0o7777)
    os.chown(file, file.stat().st_uid, file.stat().st_gid)
    health = mount.status()["health"]
    assert "read-only" in health["problem"].lower()
    assert "dmesg" in health["what_to_do"]
    assert "read-only" in mount.log_text()
    # Digests, or the times of these reads, may wait for a commit that cannot be: how the daemon
    # ends with such is the next test's matter.
    mount.kill()


def test_nothing_acknowledged_is_lost_when_the_disk_was_repaired(mount: SmallDiskMount) -> None:
    acknowledged = {}
    for number in range(10):
        data = os.urandom(200_000)
        write_synced(mount.root / f"file{number}", data)
        acknowledged[f"file{number}"] = data
    unacknowledged = os.open(mount.root / "lost", os.O_WRONLY | os.O_CREAT)
    mount.disk.go_read_only()
    try:
        os.write(unacknowledged, b"was let in before it was noticed")
    except OSError as error:
        assert error.errno == errno.EROFS
    with pytest.raises(OSError) as refused:
        os.fsync(unacknowledged)
    assert refused.value.errno == errno.EROFS
    os.close(unacknowledged)
    mount.announce("final commit failed")
    with pytest.raises(AssertionError, match="the daemon ended with 10: "):
        mount.unmount()
    mount.disk.repair()
    assert not audit(mount.store)
    mount.start()
    for name, data in acknowledged.items():
        assert (mount.root / name).read_bytes() == data
    write_synced(mount.root / "after", b"goes on")
    mount.unmount()
    assert not audit(mount.store)


def test_it_goes_on_by_itself_once_the_disk_takes_changes_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    create(path, SMALL)
    disk = FaultyDisk([Fault(1, errno.EROFS, sticky=True)])
    thread = StoreThread(path, MountOptions(commit_interval=0.05, ingest_threads=1), disk)

    async def write(store: Store) -> CafsError | None:
        ino = store.tree.lookup(ROOT, b"file") or store.tree.create(ROOT, b"file", 0o100644, 0, 0)
        await store.contents.write(ino, 0, b"content" * 1000, privileged=True)
        try:
            await store.sync_file(ino)
        except CafsError as error:
            return error
        return None

    async def content(store: Store) -> bytes:
        ino = store.tree.lookup(ROOT, b"file")
        assert ino is not None
        return await store.contents.read(ino, 0, 10_000)

    assert isinstance(thread.run(write), ReadOnlyError)
    assert thread.run(content) == b"content" * 1000
    disk.heal()
    wait_until(
        "nobody writes, and yet it is committed",
        lambda: not thread.store.overlay.pending and not thread.store.contents.being_written,
    )
    assert thread.store.status()["health"]["state"] == "ok"
    thread.crash()
    assert not audit(path)
    again = StoreThread(path)
    assert again.run(content) == b"content" * 1000
    again.close()


def test_umount_says_what_a_disk_that_takes_nothing_has_cost(mount: SmallDiskMount) -> None:
    write_synced(mount.root / "kept", b"acknowledged")
    descriptor = os.open(mount.root / "lost", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"data")
    mount.disk.go_read_only()
    with pytest.raises(OSError) as refused:
        os.fsync(descriptor)
    assert refused.value.errno == errno.EROFS
    os.close(descriptor)
    answer = json.loads(mount.run("umount", str(mount.root), "--json", code=10))
    assert answer["error"] == "ReadOnlyError"
    assert "the final commit failed" in answer["message"]
    assert "lost is what was changed since" in answer["message"]
    assert "dmesg" in answer["advice"]
    assert not mount.is_mounted()


def test_a_check_and_a_scrub_of_a_disk_that_takes_nothing(mount: SmallDiskMount) -> None:
    write_synced(mount.root / "kept", b"acknowledged" * 10_000)
    descriptor = os.open(mount.root / "waits", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"data")
    mount.disk.go_read_only()
    with pytest.raises(OSError):
        os.fsync(descriptor)
    checked = json.loads(mount.run("check", str(mount.store), "--json"))
    assert checked["clean"], checked
    assert checked["checked"]["inodes_count"] == 2, "of the last commit, which has not the new one"
    scrubbed = json.loads(mount.run("scrub", str(mount.store), "--json"))
    assert scrubbed["damaged_chunks_count"] == 0
    assert scrubbed["read_chunks_count"] > 0
    os.close(descriptor)
    mount.kill()


def test_a_scrub_that_was_interrupted_ends_on_a_disk_that_takes_nothing(
    mount: SmallDiskMount,
) -> None:
    write_synced(mount.root / "kept", b"acknowledged" * 10_000)
    state = scrub.State(1, 0, 0, [])
    scrub.save_state(mount.store, state)
    mount.disk.go_read_only()
    wait_until("it is noticed", lambda: mount.status()["health"]["state"] == "trouble")
    mount.run("scrub", str(mount.store))
    mount.kill()
