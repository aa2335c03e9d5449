"""The filesystems that are compared: plain ext4, a cafs mount, and the floor.

A side owns one directory to put things in (``root``) and whatever serves it.  Invariant: after
``stop`` nothing of it runs or is mounted, also when a run failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.meter import Footprint, Usage, footprint, usage

_PATIENCE_S = 60.0
_UNMOUNT_TRIES = 50
_READ_AHEAD_KIB = 1024


class SideError(Exception):
    """A side could not be started or stopped; says what its process said."""


def drop_caches() -> None:
    """Make the kernel forget every clean page, name and attribute; needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def sync_directory(path: Path) -> None:
    """fsync a directory; on a cafs mount that waits for all that was done before."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def cafs_command() -> list[str]:
    """How ``cafs`` is started: the one that belongs to this Python."""
    script = Path(sys.executable).parent / "cafs"
    return [str(script)] if script.exists() else [sys.executable, "-m", "cafs.cli.main"]


class Side:
    """Plain directories on the disk that all sides share; also the base of the mounted ones."""

    name = "ext4"

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "root"

    def start(self) -> None:
        """Make ``root`` usable; what is in it stays."""
        self.root.mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        """End what serves ``root``; what is in it stays where the side keeps anything."""

    def fresh(self) -> None:
        """Start with nothing in it, and nothing remembered."""
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)
        self.start()

    def cold(self) -> None:
        """Start with nothing cached anywhere, neither in the kernel nor in a daemon."""
        self.stop()
        drop_caches()
        self.start()

    def settle(self) -> None:
        """Wait until all that was written is on disk."""
        subprocess.run(["sync", "-f", str(self.root)], check=True)
        # The kernel does not pass syncfs on to a FUSE daemon; an fsync of a directory it does.
        sync_directory(self.root)

    def usage(self) -> Usage | None:
        """What its processes take; None where there are none at the moment."""
        return None

    def stored(self) -> Footprint:
        """What the side allocates for all that is in it."""
        return footprint(self.root)

    def index_bytes(self) -> int | None:
        """Allocated bytes of the index alone; None where there is none."""
        return None


class Mounted(Side):
    """A side that a process of ours serves."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.root = home / "mount"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What to run; it stays in the foreground."""
        raise NotImplementedError

    def unmount_command(self) -> list[str]:
        """What ends it in good order."""
        return ["umount", str(self.root)]

    @property
    def log(self) -> Path:
        """What the process says."""
        return self.home / "log"

    @property
    def pid(self) -> int:
        """The running process."""
        if self._process is None:
            raise SideError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        if self._process is not None:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + _PATIENCE_S
        while not os.path.ismount(self.root):
            if self._ended(0.01) or time.monotonic() > end:
                self.stop()
                raise SideError(f"{self.name} did not mount; it said:\n{self._said()}")

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        try:
            self._unmount()
            status = process.wait(_PATIENCE_S)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError, OSError) as error:
            raise SideError(f"{self.name} did not end: {error}; it said:\n{self._said()}") from None
        finally:
            self.kill()
        if status != 0:
            raise SideError(f"{self.name} ended with {status}; it said:\n{self._said()}")

    def kill(self) -> None:
        """SIGKILL the process if it still runs, and clear a dead mount away."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        subprocess.run(["umount", "-l", str(self.root)], check=False, capture_output=True)

    def usage(self) -> Usage | None:
        return None if self._process is None else usage(self._process.pid)

    def _unmount(self) -> None:
        # Anybody who looks at all mounts of the machine may have this one open for a moment.
        for _ in range(_UNMOUNT_TRIES):
            done = subprocess.run(self.unmount_command(), capture_output=True, check=False)
            if done.returncode == 0 or self._ended(0.1):
                return
        subprocess.run(["umount", "-l", str(self.root)], check=True, capture_output=True)

    def _ended(self, timeout_s: float) -> bool:
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _said(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join("  " + line for line in lines[-15:])


class Floor(Mounted):
    """An empty pyfuse3 filesystem; forgets everything when it stops, so it is never stopped
    between two measurements."""

    name = "floor"

    def command(self) -> list[str]:
        # -P: what lies beside the script must not stand in for modules of the same name.
        return [sys.executable, "-P", str(Path(__file__).with_name("floor.py")), str(self.root)]

    def start(self) -> None:
        super().start()
        # As on a cafs mount; the kernel's own 128 KiB would make it the slower one.
        device = self.root.stat().st_dev
        bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
        (bdi / "read_ahead_kb").write_text(str(_READ_AHEAD_KIB))

    def cold(self) -> None:
        drop_caches()


class Cafs(Mounted):
    """A cafs store with its mount, as ``cafs init`` and ``cafs mount`` make them."""

    name = "cafs"

    @property
    def store(self) -> Path:
        """The store's directory."""
        return self.home / "store"

    def command(self) -> list[str]:
        return [*cafs_command(), "mount", str(self.store), str(self.root)]

    def start(self) -> None:
        if self._process is None and not self.store.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            run_cafs("init", str(self.store))
        super().start()

    def stored(self) -> Footprint:
        return footprint(self.store)

    def index_bytes(self) -> int | None:
        return footprint(self.store / "index").allocated_bytes

    def unmount_command(self) -> list[str]:
        return [*cafs_command(), "umount", str(self.root)]


def run_cafs(*arguments: str) -> str:
    """Run one cafs command and return what it printed.

    Raises:
        SideError: it ended with anything but 0.
    """
    done = subprocess.run(
        [*cafs_command(), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SideError(
            f"cafs {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr.strip()}"
        )
    return done.stdout
