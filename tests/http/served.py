"""One ``cafs serve`` with a store, a mountpoint and settings of its own.

Invariant: after `close` no process, mount or directory of it is left, whatever became of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cafs.mount.mountpoint import mount_at
from tests.conftest import ROOT, RunCafs
from tests.http.stocknginx import need_nginx
from tests.http.wire import free_ports

NEEDED = [
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="cleans up with umount2(2), which root may call"),
]
"""For `pytestmark`."""

PATIENCE_S = 30.0
_MNT_DETACH = 2
KEY = "admin/cc-packages/ab/cd/abcd-1"


class Served:
    """A store, a mountpoint, settings, and one ``cafs serve`` in the foreground."""

    def __init__(self, run: RunCafs) -> None:
        need_nginx()
        self.base = Path(tempfile.mkdtemp(prefix="cafs-serve-"))
        self.store = self.base / "store"
        self.mountpoint = self.base / "mnt"
        self.settings = self.base / "cafs.toml"
        self.log = self.base / "log"
        self.mountpoint.mkdir()
        self.ports = free_ports(3)
        self.configure()
        assert run("init", self.store).returncode == 0
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, **changes: Any) -> None:
        """Write the settings file."""
        values = {
            "run_dir": str(self.base / "run"),
            "listen_address": "127.0.0.1",
            "internal_port": self.ports[0],
            "public_tls_port": 0,
            "public_port": self.ports[1],
            "workers": 1,
            **changes,
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        self.settings.write_text("[serve]\n" + "\n".join(lines) + "\n")

    def launch(self, *flags: str) -> subprocess.Popen[bytes]:
        """Start it, without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "cafs.cli.main", "serve", "--json", "--dev"),
                    *("--config", str(self.settings), str(self.store), str(self.mountpoint)),
                    *flags,
                ],
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def start(self, *flags: str) -> dict[str, Any]:
        """Start it, and return what it says when it answers."""
        process = self.launch(*flags)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
        line = process.stdout.readline() if ready else b""
        assert line, self.log.read_text()
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def curl(self, path: str, *flags: str, port: int = 0) -> tuple[int, bytes]:
        """Status and body of one request to the internal server."""
        done = subprocess.run(
            [
                *("curl", "-sS", "-K", str(self.store / "dev" / "curl"), "-w", "\n%{http_code}"),
                *flags,
                f"https://localhost:{port or self.ports[0]}/{path}",
            ],
            capture_output=True,
            check=False,
            timeout=PATIENCE_S,
        )
        body, _, status = done.stdout.rpartition(b"\n")
        return int(status or 0), body

    def put(self, data: bytes, path: str = KEY) -> None:
        """Store a blob."""
        source = self.base / "source"
        source.write_bytes(data)
        status, body = self.curl(path, "-T", str(source))
        assert status in (201, 204), body

    def children(self, name: str) -> list[int]:
        """Children whose command line holds *name*."""
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [pid for pid in map(int, listed.split()) if name in command_line(pid)]

    def await_log(self, text: str) -> None:
        """Wait until the log says it."""
        await_(lambda: text in self.log.read_text(), lambda: self.log.read_text())

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        assert mount_at(self.mountpoint) is None
        return code

    def close(self) -> None:
        """Leave nothing, whatever state it is in."""
        process = self.process
        if process is not None:
            pids = [process.pid, *descendants(process.pid)] if process.poll() is None else []
            for pid in pids:
                _kill(pid, signal.SIGKILL)
            process.wait(PATIENCE_S)
            assert process.stdout is not None
            process.stdout.close()
        for pid in mentioning(str(self.base)):
            _kill(pid, signal.SIGKILL)
        while mount_at(self.mountpoint) is not None:
            if ctypes.CDLL(None).umount2(os.fsencode(self.mountpoint), _MNT_DETACH):
                break
        print(self.log.read_text() if self.log.exists() else "")
        shutil.rmtree(self.base, ignore_errors=True)


def await_(condition: Callable[[], bool], told: Callable[[], str]) -> None:
    """Wait for a condition that nothing announces."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [one for child in map(int, listed) for one in (child, *descendants(child))]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def mentioning(text: str) -> list[int]:
    own = os.getpid()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid != own and text in command_line(pid)]


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
