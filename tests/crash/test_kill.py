"""SIGKILL in the middle of work: what was acknowledged is there, and nothing is torn."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafs import storefile
from cafs.index.pending import default_path
from cafs.lock import wait_until_free
from tests.crash.writers import Manifest, Writers
from tests.fault.smalldisk import wait_until
from tests.model.audit import audit
from tests.mount.mounted import Mount
from tests.mount.syscalls import RENAME_EXCHANGE, fails, renameat2

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def mount() -> Iterator[Mount]:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    mount = Mount("--commit-interval", "100ms")
    try:
        mount.start()
        yield mount
        stray = mount.unexpected_log_lines()
    finally:
        mount.close()
    assert not stray, "\n".join(stray)


def children(pid: int) -> list[int]:
    # A child belongs to the thread that started it.
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for each in threads for word in (each / "children").read_text().split()]


def index_writers(daemon: int) -> list[int]:
    """The daemon's child that writes the index; none for the moment between two."""
    return [
        child
        for child in children(daemon)
        if b"cafs.index.writer_process" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def rounds(mount: Mount, count: int, seed: int) -> None:
    choice = random.Random(seed)
    manifest = Manifest()
    for number in range(count):
        before = manifest.count
        writers = Writers(mount.root, manifest, seed * 1000 + number)
        manifest.wait_for(before + choice.randrange(5, 60))
        mount.kill()
        writers.stop()
        assert writers.errors, "the kill came when nobody wrote"
        if number % 2:
            # A child of the killed daemon may still finish its last transaction.
            assert wait_until_free(mount.store, 30)
            faults = audit(mount.store)
            assert not faults, faults
        mount.start()
        assert manifest.check(mount.root) > 0, "a run that acknowledged nothing shows nothing"
        spool = list((mount.store / "spool").iterdir())
        assert not spool, "what was not committed leaves nothing behind"
    mount.unmount()
    assert not audit(mount.store)


def test_what_was_acknowledged_survives_sigkill(mount: Mount) -> None:
    rounds(mount, 4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 7))
def test_what_was_acknowledged_survives_many_kills(mount: Mount, seed: int) -> None:
    rounds(mount, 30, seed)


@pytest.mark.parametrize("order", [("live", "staged"), ("staged", "live")])
def test_files_that_change_places_are_both_whole(order: tuple[str, str]) -> None:
    """Whichever name comes first; and the daemon stores nothing by itself meanwhile."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    content = {name: random.Random(name).randbytes(3_000_000) for name in order}
    mount = Mount("--commit-interval", "60s")
    try:
        mount.start()
        # Open, so that closing does not begin to store what is left.
        streams = [(mount.root / name).open("wb") for name in order]
        for name, stream in zip(order, streams, strict=True):
            stream.write(content[name])
            stream.flush()
        one, two = (mount.root / name for name in order)
        renameat2(one, two, RENAME_EXCHANGE)
        mount.kill()
        for stream in streams:
            with fails(errno.ENOTCONN):
                stream.close()
        mount.start()
        assert one.read_bytes() == content[two.name]
        assert two.read_bytes() == content[one.name]
        mount.unmount()
        assert not audit(mount.store)
    finally:
        mount.close()


def test_the_index_writer_is_killed_and_service_goes_on(mount: Mount) -> None:
    mount.announce("index writer process died")
    manifest = Manifest()
    writers = Writers(mount.root, manifest, seed=50)
    for number in range(1, 6):
        manifest.wait_for(number * 10)
        wait_until("there is an index writer", lambda: bool(index_writers(mount.pid)))
        for writer in index_writers(mount.pid):
            os.kill(writer, signal.SIGKILL)
    manifest.wait_for(manifest.count + 20)
    writers.stop()
    assert not writers.errors, writers.errors
    assert "index writer process died" in mount.log.read_text()
    assert manifest.check(mount.root) > 10
    mount.restart()
    manifest.check(mount.root)
    mount.unmount()
    assert not audit(mount.store)


def test_a_start_waits_for_the_last_commit_of_a_killed_daemon(mount: Mount) -> None:
    """The index writer outlives its daemon for a moment, and a service manager is quick."""
    (writer,) = index_writers(mount.pid)
    os.kill(writer, signal.SIGSTOP)
    mount.kill()
    holds = os.pidfd_open(writer)
    starting = threading.Thread(target=mount.start)
    starting.start()
    wait_until("the daemon has begun", lambda: mount._process is not None)
    os.kill(writer, signal.SIGCONT)
    starting.join()
    assert mount.is_mounted()
    os.close(holds)


def test_what_a_killed_daemon_left_outside_goes_with_its_mount(mount: Mount) -> None:
    pending = default_path(storefile.read(mount.store).id)
    mount.kill(detach=False)
    assert pending.exists()
    assert wait_until_free(mount.store, 30)
    told = mount.run("umount", str(mount.root))
    assert "which a dead daemon" in told
    assert not list(pending.parent.glob(pending.name + "*"))
    assert not mount.is_mounted()


def test_a_pending_file_in_the_usual_place_goes_when_another_is_named(
    mount: Mount, tmp_path: Path
) -> None:
    usual = default_path(storefile.read(mount.store).id)
    mount.kill()
    assert usual.exists()
    settings = tmp_path / "cafs.toml"
    settings.write_text(f'[mount]\npending_file = "{tmp_path}/pending"\n')
    mount.configure(settings)
    mount.start()
    assert not usual.exists()
    assert (tmp_path / "pending").exists()


def test_what_lies_beyond_the_last_commit_is_taken_back(mount: Mount) -> None:
    """A file that was never acknowledged leaves neither a name nor bytes in a pack."""
    kept = mount.root / "kept"
    with kept.open("wb") as file:
        file.write(os.urandom(100_000))
        file.flush()
        os.fsync(file.fileno())
    stopped = children(mount.pid)
    for child in stopped:
        os.kill(child, signal.SIGSTOP)  # nothing is committed from here on
    try:
        (mount.root / "void").write_bytes(os.urandom(20_000_000))
    finally:
        mount.kill()  # first: it would start others in their place
        for child in stopped:
            os.kill(child, signal.SIGKILL)
    assert wait_until_free(mount.store, 30)
    mount.start()
    assert os.listdir(mount.root) == ["kept"]
    packs = sum(path.stat().st_size for path in (mount.store / "packs").iterdir())
    assert packs < 200_000
    mount.unmount()
    assert not audit(mount.store)
