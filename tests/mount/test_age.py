"""Ageing in a real daemon: by itself, by order, paused, killed, and on a disk without room."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.smalldisk import (
    MIB,
    SmallDisk,
    SmallDiskMount,
    need_loop_devices,
    wait_until,
)
from tests.model.audit import audit
from tests.mount.mounted import COMMAND, Mount
from tests.unit.archived import gzipped, sources, tar
from tests.unit.small_store import findings, noise

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse"),
]

DROPLET = gzipped(tar(sources()))
NEXT = gzipped(tar(sources(), 1_700_000_777))


def settings(mount: Mount, **values: str) -> None:
    """Let the daemon and commands have these settings of ageing."""
    path = mount.base / "cafs.toml"
    lines = [f"{name} = {value}" for name, value in values.items()]
    path.write_text("[archives]\n" + "\n".join(lines) + "\n")
    mount.configure(path)


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Not started yet."""
    made = Mount("--commit-interval", "100ms")
    try:
        yield made
        stray = made.unexpected_log_lines()
    finally:
        made.close()
    assert not stray, "\n".join(stray)


def put(mount: Mount, path: str, data: bytes) -> Path:
    target = mount.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return target


def order(mount: Mount, *arguments: str, code: int = 0) -> dict[str, Any]:
    answer = mount.run("age", str(mount.store), "--json", *arguments, code=code)
    found: dict[str, Any] = json.loads(answer)
    return found


def report(mount: Mount) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mount.run("status", str(mount.store), "--json"))["archives"]
    return found


def shown(path: Path) -> tuple[int, ...]:
    """What others see of a file, but for the device, which each mount has its own of."""
    found = path.stat()
    return found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def test_a_daemon_ages_by_itself_and_nobody_sees_it(mount: Mount) -> None:
    settings(mount, age_after='"0s"', age_interval='"200ms"')
    mount.start()
    paths = [put(mount, f"cc-droplets/{n}/x", data) for n, data in enumerate((DROPLET, NEXT))]
    put(mount, "text", b"words " * 100_000)
    before = [shown(path) for path in paths]
    # It stands back for whatever else the machine does.
    wait_until("both are aged", lambda: report(mount)["taken_apart_count"] == 2, 150.0)
    # A new mount: nothing of it is in the kernel's memory.
    mount.restart()
    for path, data, old in zip(paths, (DROPLET, NEXT), before, strict=True):
        assert shown(path) == old
        assert path.read_bytes() == data
    found = report(mount)
    assert found["taken_apart_bytes"] == len(DROPLET) + len(NEXT)
    assert (found["reads_count"], found["rebuilds_failed_count"]) == (2, 0)
    # What both have in common is stored once: the second cost next to nothing.
    assert found["gained_bytes"] > len(NEXT) // 2
    mount.unmount()
    assert not audit(mount.store)
    assert not findings(mount.store)


def test_orders(mount: Mount) -> None:
    mount.start()
    put(mount, "a/x", DROPLET)
    assert order(mount, "--dry-run")["in_use_count"] == 1
    dry = order(mount, "--dry-run", "--now")
    assert [each["paths"] for each in dry["candidates"]] == [[{"path": "/a/x"}]]
    assert order(mount)["taken_apart_count"] == 0
    assert order(mount, "--pause")["state"] == "paused"
    mount.restart()
    assert report(mount)["state"] == "paused"
    # Paused is what goes on by itself, not what somebody asks for.
    assert order(mount, "--now")["taken_apart_count"] == 1
    assert order(mount, "--resume")["state"] in ("idle", "looking")
    sha256 = hashlib.sha256(DROPLET).hexdigest()
    aged = json.loads(mount.run("blob", sha256, "--json", "--store", str(mount.store)))["aged"]
    assert aged["inner_bytes"] == len(tar(sources()))
    assert 0 < aged["rebuild_s"] < 60
    assert order(mount, "--thaw", "--path", str(mount.root / "a"))["thawed_count"] == 1
    assert order(mount, "--now")["taken_apart_count"] == 0
    mount.unmount()
    assert order(mount, "--path", "/a")["taken_apart_count"] == 1
    assert "1 archive " in mount.run("age", str(mount.store), "--thaw", "--path", "/")
    assert not findings(mount.store)


@pytest.mark.parametrize(
    "arguments",
    [["--thaw"], ["--thaw", "--path", "/", "--now"], ["--pause", "--resume"], ["--pause", "--now"]],
)
def test_orders_that_make_no_sense(mount: Mount, arguments: list[str]) -> None:
    assert order(mount, *arguments, code=2)["error"] == "UsageError"


def test_who_is_in_the_midst_of_an_archive_does_not_wait_for_what_lies_before(
    mount: Mount,
) -> None:
    mount.start()
    path = put(mount, "a/x", DROPLET)
    with path.open("rb", buffering=0) as file:
        assert file.read(1000) == DROPLET[:1000]
        assert order(mount, "--now")["left"] == {"somebody has it open": 1}
    # The kernel tells of a closed file a moment later.
    wait_until("it is taken apart", lambda: order(mount, "--now")["taken_apart_count"] == 1)
    assert path.read_bytes() == DROPLET


def test_a_path_that_is_not_there(mount: Mount) -> None:
    assert order(mount, "--path", "/nowhere", code=3)["error"] == "NotFoundError"
    mount.start()
    assert order(mount, "--path", "/nowhere", code=3)["error"] == "NotFoundError"


def test_killed_in_the_middle_of_a_pass(mount: Mount) -> None:
    mount.start()
    data = {
        f"{n}/x": gzipped(tar({"noise": noise(n, 500_000)} | sources(["json"]))) for n in range(10)
    }
    for name, content in data.items():
        put(mount, name, content)
    with subprocess.Popen(
        [*COMMAND, "age", str(mount.store), "--now", "--progress", "json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as asked:
        assert asked.stderr is not None
        for line in asked.stderr:
            # One archive is through at least, and another under way.
            if line.startswith("{") and 0 < json.loads(line)["done"] < json.loads(line)["total"]:
                break
        mount.kill()
        asked.stderr.close()
    assert asked.returncode
    mount.start()
    for name, content in data.items():
        assert (mount.root / name).read_bytes() == content
    order(mount, "--now")
    mount.restart()
    for name, content in data.items():
        assert (mount.root / name).read_bytes() == content
    mount.unmount()
    assert not audit(mount.store)
    assert not findings(mount.store)


@pytest.fixture
def small() -> Iterator[SmallDiskMount]:
    """A store on a disk of 64 MiB."""
    need_loop_devices()
    disk = SmallDisk(64 * MIB)
    made = None
    try:
        made = SmallDiskMount(disk, "--commit-interval", "100ms", "--grace", "0s")
        made.start()
        yield made
    finally:
        try:
            if made is not None:
                made.close()
        finally:
            disk.close()


def test_a_full_disk_stops_it_and_it_goes_on_when_there_is_room(small: SmallDiskMount) -> None:
    path = put(small, "a/x", DROPLET)
    filler = small.disk.fill(leave=3 * MIB)
    answer = order(small, "--now", code=9)
    assert answer["taken_apart_count"] == 0
    assert answer["stopped"]
    assert path.read_bytes() == DROPLET
    filler.unlink()
    wait_until("there is room", lambda: small.status()["health"]["state"] == "ok")
    assert order(small, "--now")["taken_apart_count"] == 1
    small.restart()
    assert path.read_bytes() == DROPLET


def test_a_read_only_disk_stops_it(small: SmallDiskMount) -> None:
    path = put(small, "a/x", DROPLET)
    small.disk.go_read_only()
    wait_until("it is seen", lambda: small.status()["health"]["state"] != "ok")
    answer = order(small, "--now", code=10)
    assert answer["error"] == "ReadOnlyError"
    assert path.read_bytes() == DROPLET
    # It could not commit its last words.
    small.kill()
