"""A small real disk: an ext4 image on a loop device, and a daemon whose store lies on it.

Owns the image, the mount and the loop device, which goes with its mount.  Invariant: after
close() nothing of it is left, whatever state the filesystem was brought to.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.mounted import Mount, public_directory

MIB = 1 << 20
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class SmallDisk:
    """An ext4 filesystem of *size* bytes."""

    def __init__(self, size: int = 64 * MIB) -> None:
        self.base = public_directory()
        self.path = self.base / "disk"
        self.path.mkdir()
        image = self.base / "image"
        with image.open("wb") as file:
            file.truncate(size)
        self._image = image
        try:
            # Nothing kept for root: what statfs says is what there is.
            _run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0", str(image))
            self.attach()
        except BaseException:
            self.close()
            raise

    def attach(self) -> None:
        """Mount it; after an error, as fsck leaves it."""
        _run("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.path))

    def detach(self) -> None:
        """Unmount it; the loop device goes with it."""
        _run("umount", str(self.path))

    def repair(self) -> None:
        """What an operator does after an error: unmount, fsck, mount."""
        self.detach()
        done = subprocess.run(
            ["fsck.ext4", "-p", "-f", str(self._image)], capture_output=True, check=False
        )
        assert done.returncode in (0, 1), done.stdout
        self.attach()

    @property
    def free(self) -> int:
        """Bytes that are left."""
        figures = os.statvfs(self.path)
        return figures.f_bavail * figures.f_frsize

    def go_read_only(self) -> None:
        """Let ext4 find an error, upon which it takes no more changes."""
        device = os.stat(self.path).st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("a test of cafs")

    def fill(self, name: str = "of-somebody-else", leave: int = 0) -> Path:
        """Let somebody else's file take all but *leave* bytes."""
        path = self.path / name
        with path.open("ab", buffering=0) as file:
            block = bytes(65536)
            try:
                while (room := self.free - leave) > 0:
                    file.write(block[:room])
                os.fsync(file.fileno())
            except OSError:
                pass  # The last block may find no room for its own map.
        return path

    def close(self) -> None:
        """Take it away."""
        while _libc.umount2(os.fsencode(self.path), _MNT_DETACH) == 0:
            pass
        shutil.rmtree(self.base, ignore_errors=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class SmallDiskMount(Mount):
    """A daemon whose store lies on a small disk; its log does not."""

    def __init__(self, disk: SmallDisk, *options: str, init: tuple[str, ...] = ()) -> None:
        self.base = public_directory()
        self.disk = disk
        self.store = disk.path / "store"
        self.root = self.base / "mnt"
        self.log = self.base / "daemon.log"
        self._options = options
        self._settings = ()
        self._process = None
        self._announced = []
        self.root.mkdir()
        self.run("init", str(self.store), *init)

    def status(self) -> dict[str, Any]:
        """What ``cafs status`` says."""
        answer: dict[str, Any] = json.loads(self.run("status", str(self.store), "--json"))
        return answer

    def log_text(self) -> str:
        """The daemon's log so far."""
        return self.log.read_text(errors="replace")


def wait_until(what: str, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Ask again and again, a little apart, until *holds*; fail with *what* if it never does."""
    end = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"in vain for {timeout_s} s: {what}")
        # The kernel has no event for what a daemon decides by itself.
        select.select([], [], [], 0.05)


def need_loop_devices() -> None:
    """Skip where there is no root, no loop device or no mkfs."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("a small disk needs root and loop devices")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("a small disk needs mkfs.ext4")
