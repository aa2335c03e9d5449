"""What the fault tests share: targets of their own, on disks that may go wrong.

Invariant: a target that was made here is gone at the end of its `with`, whatever was done to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fault.smalldisk import MIB, SmallDisk, SmallDiskMount, need_loop_devices, wait_until
from tests.http.stocknginx import need_nginx
from tests.http.targets import OPTIONS, OURS, TARGETS, Area, Target
from tests.mount.mounted import Mount

FRONTS: Final = tuple(name for name in TARGETS if name not in ("reference", "stock-inside"))
"""What may stand before a store; each is given every fault."""
FRONTS_STOCK_AT_NIGHT: Final = [
    pytest.param(name, marks=pytest.mark.slow) if name == "stock" else name for name in FRONTS
]
"""The same for tests that take long; tests/fault and tests/crash hold the mount to it by day."""
ANYTHING: Final = "anything"
"""What a blob may be that nginx was writing over in place."""


@contextlib.contextmanager
def running(name: str, *, to_be_clean: bool = True) -> Iterator[Target]:
    """A target of the test's own; at the end its store is *to_be_clean*, if the test ends well."""
    need_nginx()
    target = TARGETS[name]()
    try:
        yield target
        if to_be_clean:
            target.close_well()
    finally:
        target.close()


@contextlib.contextmanager
def on_small_disk(name: str, size: int = 64 * MIB) -> Iterator[tuple[Target, SmallDisk]]:
    """A target whose store lies on a disk of *size* bytes."""
    need_nginx()
    need_loop_devices()
    disk = SmallDisk(size)
    try:
        mount = SmallDiskMount(disk, *OPTIONS, init=("--pack-size", "4MiB"))
        target = TARGETS[name](mount)  # type: ignore[call-arg]
        try:
            yield target, disk
        finally:
            target.close()
    finally:
        disk.close()


def mounted(target: Target) -> Mount:
    """The mounted store of a target that has one."""
    mount = target.store_mount
    assert mount is not None
    return mount


@contextlib.contextmanager
def area_of(target: Target, name: str = "cc-faults") -> Iterator[Area]:
    """A type directory of a target, with a connection."""
    area = Area(target, name)
    try:
        yield area
    finally:
        area.http.close()


class Uploads:
    """A client that PUTs, COPYs and DELETEs, and remembers what the server acknowledged.

    What was refused or broken off may have been done or not; what was acknowledged counts.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self._in_place = target.name not in OURS
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._area = Area(target, f"cc-{seed}")
        self._held: dict[str, set[str | None]] = {}
        """For each key the digests that it may have now; None: it may be absent."""
        self.acknowledged = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def interrupted(self) -> int:
        """How often a request or its connection was broken off."""
        return self.failed + max(0, self._area.http.opened - 1)

    @property
    def files(self) -> list[Path]:
        """Every file in this client's directory."""
        return [path for path in self._area.directory.rglob("*") if path.is_file()]

    def wait_for(self, count: int) -> None:
        """Return when *count* more requests were acknowledged."""
        aim = self.acknowledged + count
        wait_until(f"{count} acknowledgements", lambda: self.acknowledged >= aim, 60)

    def stop(self) -> None:
        """Finish the request under way and end."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._area.http.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._one()
            except OSError:
                self.failed += 1
                self._area.http.close()
            except Exception:
                # Half an answer.
                self.failed += 1
                self._area.http.close()

    def _one(self) -> None:
        key = f"{self._random.randrange(4):02x}/{self._random.randrange(30)}"
        kind = self._random.choice(("PUT", "PUT", "PUT", "COPY", "DELETE"))
        before = self._held.get(key, {None})
        new: set[str | None]
        url = self._area.url(key)
        if kind == "PUT":
            data = self._random.randbytes(self._random.randrange(1, 120_000))
            new = {hashlib.sha256(data).hexdigest()}
            self._held[key] = before | new
            good = self._area.http.request("PUT", url, data).status in (201, 204)
        elif kind == "COPY":
            source = f"{self._random.randrange(4):02x}/{self._random.randrange(30)}"
            new = self._held.get(source, {None})
            if source == key or len(new) != 1 or None in new or before == {None}:
                return
            self._held[key] = before | new | ({ANYTHING} if self._in_place else set())
            good = self._area.copy(source, key) in (201, 204)
        else:
            new = {None}
            self._held[key] = before | new
            good = self._area.http.request("DELETE", url).status in (204, 404)
        if good:
            # Through the mount only a rename promises that all before it is on disk.
            if kind == "PUT" or not self._in_place:
                self._held[key] = new
            self.acknowledged += kind != "DELETE"  # it may have found nothing
        else:
            self.failed += 1

    def check(self) -> int:
        """Compare everything with what was acknowledged; returns how many blobs are there."""
        found = 0
        for key, allowed in self._held.items():
            reply = self._area.http.request("GET", self._area.url(key))
            if reply.status == 404:
                assert None in allowed, f"{key} is gone"
                assert not self._area.file(key).exists()
                continue
            assert reply.status == 200, (key, reply)
            assert self._area.file(key).read_bytes() == reply.body
            digest = hashlib.sha256(reply.body).hexdigest()
            assert allowed & {digest, ANYTHING}, f"{key} is not what was acknowledged"
            found += 1
        self._area.http.close()
        return found


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def open_files(pids: Iterable[int]) -> list[str]:
    """What the descriptors of processes lead to; one may be closed while they are looked at."""
    targets = []
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                targets.append(os.readlink(link))
    return targets


def resident_bytes(pid: int) -> int:
    """Memory of a process, without what it only maps from files."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024
