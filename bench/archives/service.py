"""A cafs store that is served and aged, and how a benchmark orders its ageing about.

Invariant: nothing is aged but by order; what the daemon would do by itself is paused.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.archives.blobs import Read, read_file, read_http
from bench.archives.corpus import Blob
from bench.archives.inside import Held, look
from bench.http.load import Ask, LoadError
from bench.http.servers import CafsServer
from bench.meter import descendants, footprint
from bench.sides import SideError, cafs_command, drop_caches, run_cafs, sync_directory

_OFTEN = 1_000_000
_PATIENCE_S = 300.0


class Spent(NamedTuple):
    """What ageing took."""

    seconds: float
    cpu_s: float
    """Of the process and of the engines that it ran."""


class AgedServer(CafsServer):
    """``cafs serve`` of a store whose archives are taken apart."""

    def more_settings(self) -> dict[str, dict[str, Any]]:
        # Whatever is there counts as old, and stays taken apart however often it is read.
        return {"archives": {"age_after": "0s", "thaw_after": _OFTEN}}

    def prepare(self) -> None:
        super().prepare()
        run_cafs("age", str(self.store), "--pause")

    def age_now(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a pass over all candidates; the process ends with it, and prints JSON."""
        return subprocess.Popen(
            [*cafs_command(), "age", str(self.store), "--now", "--json", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def age_offline(self) -> Spent:
        """Stop, and take everything apart without anybody to give way to."""
        self.stop()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.monotonic()
        run_cafs("age", str(self.store), "--now", "--json", "--config", str(self.settings))
        seconds = time.monotonic() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Spent(seconds, cpu_s)

    def stop_ageing(self, process: subprocess.Popen[str]) -> None:
        """End what :meth:`age_now` began; the archive that is under way stays as it was."""
        run_cafs("age", str(self.store), "--pause")
        process.communicate()

    def is_ageing(self) -> bool:
        """Whether an archive is being taken apart at the moment."""
        said = json.loads(run_cafs("status", str(self.store), "--json"))
        return bool(said["archives"]["state"] == "working")

    def held(self) -> Held:
        """How the store holds its archives now."""
        if self._process is not None:
            # That waits for the commit of all that was done before.
            sync_directory(self.root)
        return look(self.store)

    def wait_until_hashed(self) -> None:
        """An archive is a candidate only when its digests are known."""
        end = time.monotonic() + _PATIENCE_S
        while self.held().unhashed:
            if time.monotonic() > end:
                raise SideError(f"not all was hashed within {_PATIENCE_S:.0f} s")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """``cafs serve`` itself."""
        if self._process is None:
            raise SideError(f"{self.name} is not running")
        return self._process.pid

    def daemon(self) -> int:
        """The process that has the store open and serves the mount."""
        for pid in descendants(self.pid):
            if b"cafs.serve.mount_child" in _command_line(pid):
                return pid
        raise SideError("there is no daemon")

    def wait_for_daemon(self, but: int) -> None:
        """Wait until another daemon than *but* serves the mount, and nginx reaches it."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            try:
                if self.daemon() != but and os.path.ismount(self.root):
                    # A request that only a daemon answers.
                    self.ask([Ask("PROPFIND", "", 207, None, "Depth: 0")])
                    return
            except (SideError, LoadError, OSError):
                pass
            time.sleep(0.05)
        raise SideError(f"no daemon came back within {_PATIENCE_S:.0f} s")

    def kill(self) -> None:
        """What is left after SIGKILL of all processes: clear it away."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for path in (self.root, self.run_dir):
            subprocess.run(["umount", "-l", path], check=False, capture_output=True)

    def stored_bytes(self) -> int:
        """What the store takes on disk, without its cache, which may go at any time."""
        cache = self.store / "cache"
        cached = footprint(cache).allocated_bytes if cache.exists() else 0
        return footprint(self.store).allocated_bytes - cached

    def give_back(self) -> None:
        """Stop, and give the space of all that is dead back to the disk."""
        self.stop()
        run_cafs("compact", str(self.store), "--grace", "0s")

    def forget(self) -> None:
        """Start with nothing cached anywhere, rebuilt content included."""
        self.stop()
        shutil.rmtree(self.store / "cache", ignore_errors=True)
        drop_caches()
        self.start()

    def get(self, blob: Blob, like: Path | None = None) -> Read:
        """GET of the whole; held to *like* piece by piece."""
        headers = dict(header.split(": ", 1) for header in self.headers)
        return read_http(self.ports["tls"], f"/admin/{blob.path}", headers, like)

    def read(self, blob: Blob, like: Path | None = None) -> Read:
        """Read the whole through the mount; held to *like* piece by piece."""
        return read_file(self.root / blob.path, like)


def home(directory: Path, name: str) -> Path:
    """Where one workload works."""
    return directory / "archives-run" / name


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
