"""The two that are compared: nginx on plain ext4, and nginx before a cafs store.

Both get their configuration from the same generator and the same settings; only what answers
differs.  Invariant: after ``stop`` nothing of a side runs or is mounted, also when a run failed.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.http.load import Ask, Load, Mode, Timing
from bench.meter import Usage, usage
from bench.sides import SideError, cafs_command, drop_caches, run_cafs, sync_directory
from cafs import config
from cafs.serve import plan as serve_plan
from cafs.serve.plan import Plan

USER, PASSWORD, SECRET = "bench", "bench-password", "bench-secret"
EXPIRES = 4102444800
"""In the year 2100: links outlive the run."""
_PATIENCE_S = 120.0
_SOURCES = Path(__file__).resolve().parents[2] / "native"


def nginx_module(where: Path) -> Path:
    """The module as its sources are now, built in *where* if it was not yet.

    Raises:
        SideError: it does not build.
    """
    digest = hashlib.sha256()
    for path in sorted([*_SOURCES.glob("nginx/*"), *_SOURCES.glob("include/*")]):
        if path.is_file():
            digest.update(path.read_bytes())
    directory = where / f"module-{digest.hexdigest()[:12]}"
    module = directory / "ngx_http_cafs_module.so"
    if not module.exists():
        directory.mkdir(parents=True, exist_ok=True)
        command = [str(_SOURCES / "nginx" / "build.sh"), "--install", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SideError(f"the nginx module does not build:\n{done.stderr.strip()}")
    return module


class Server:
    """One side: a tree, and who serves it on three ports."""

    name = "ext4"

    def __init__(self, home: Path, load: Load, module: Path, first_port: int) -> None:
        self.home = home
        self.load = load
        self.ports = {"tls": first_port, "clear": first_port + 1}
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self.headers = [
            f"Host: localhost:{first_port}",
            "Authorization: Basic "
            + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode("ascii"),
        ]

    @property
    def root(self) -> Path:
        """The tree, as the file system shows it."""
        return self.home / "root"

    @property
    def run_dir(self) -> Path:
        """nginx's own directory, with its temporary files."""
        return self.home / "run"

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.home / "cafs.toml"

    def prepare(self) -> None:
        """Make everything anew, with nothing in the tree."""
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)
        self.root.mkdir(parents=True)
        self.run_dir.mkdir()
        self._configure()

    def _configure(self) -> None:
        users, secret = self.home / "users", self.home / "secret"
        users.write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
        secret.write_text(SECRET + "\n")
        certificate, key = self.home / "certificate.pem", self.home / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
                *("-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
        sections: dict[str, dict[str, Any]] = {
            "http": {
                "certificate": str(certificate),
                "certificate_key": str(key),
                "users_file": str(users),
                "secret_file": str(secret),
            },
            "serve": {
                "nginx_module": str(self._module),
                "run_dir": str(self.run_dir),
                "listen_address": "127.0.0.1",
                "internal_port": self.ports["tls"],
                "public_port": self.ports["clear"],
                "public_tls_port": 0,
                "workers": 1,
                # Else a thousandth of all requests would open a connection, too.
                "keepalive_requests": 10_000_000,
            },
            **self.more_settings(),
        }
        lines = []
        for section, values in sections.items():
            lines.append(f"[{section}]")
            lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        self.settings.write_text("\n".join(lines) + "\n")

    def more_settings(self) -> dict[str, dict[str, Any]]:
        """Further sections of the settings file."""
        return {}

    def start(self) -> None:
        """Serve; what is in the tree stays."""
        if self._process is not None:
            return
        # Cloud Foundry's nginx has its temporary files on another disk, so that an upload ends
        # with a copy.  Another mount of the same disk makes the same happen.
        subprocess.run(["mount", "--bind", self.run_dir, self.run_dir], check=True)
        made: Plan = serve_plan.make_classic(self.root, config.load(self.settings), self.run_dir)
        made.write()
        command = [
            *(str(made.nginx.program), "-p", str(self.run_dir), "-e", "stderr"),
            *("-c", str(made.config), "-g", "daemon off;"),
        ]
        self._launch(command)
        end = time.monotonic() + _PATIENCE_S
        while not self._listens():
            if self._ended() or time.monotonic() > end:
                self.stop()
                raise SideError(f"{self.name} does not serve; it said:\n{self._said()}")

    def _launch(self, command: list[str], stdout: int = subprocess.DEVNULL) -> None:
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
                preexec_fn=_end_with_parent,
            )

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.ports["tls"]), 1).close()
        except OSError:
            time.sleep(0.01)
            return False
        return True

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _said(self) -> str:
        log = self.home / "log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join("  " + line for line in lines[-15:])

    def stop(self) -> None:
        """End it in good order; what is in the tree stays."""
        process, self._process = self._process, None
        try:
            if process is not None:
                process.send_signal(signal.SIGTERM)
                process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise SideError(f"{self.name} did not end; it said:\n{self._said()}") from None
        finally:
            if process is not None:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
            for path in (self.root, self.run_dir):
                if os.path.ismount(path) or _is_bound(path):
                    subprocess.run(["umount", "-l", path], check=False, capture_output=True)

    def cold(self) -> None:
        """Start with nothing cached anywhere."""
        self.stop()
        drop_caches()
        self.start()

    def settle(self) -> None:
        """Wait until all that was written is on disk."""
        os.sync()
        sync_directory(self.root)

    def usage(self) -> Usage:
        """What its processes take."""
        if self._process is None:
            raise SideError(f"{self.name} is not running")
        return usage(self._process.pid)

    def link(self, path: str) -> str:
        """What leads to *path* (below the tree) without credentials."""
        uri = f"/read/{path}"
        digest = hashlib.md5(f"{EXPIRES}{uri} {SECRET}".encode(), usedforsecurity=False).digest()
        text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        return f"{uri}?md5={text}&expires={EXPIRES}"

    def ask(
        self, asks: list[Ask], *, tls: bool = True, connections: int = 1, mode: Mode = "keep"
    ) -> Timing:
        """Send requests.  Paths are below the tree; in the clear they become links."""
        if tls:
            sent = [ask._replace(path=f"/admin/{ask.path}") for ask in asks]
        else:
            sent = [ask._replace(path=self.link(ask.path)) for ask in asks]
        port = self.ports["tls" if tls else "clear"]
        return self.load(port, sent, self.headers, tls=tls, connections=connections, mode=mode)


class CafsServer(Server):
    """``cafs serve``: mount, daemon, and nginx with the module."""

    name = "cafs"

    @property
    def store(self) -> Path:
        """The store's directory."""
        return self.home / "store"

    def prepare(self) -> None:
        super().prepare()
        run_cafs("init", str(self.store))

    def start(self) -> None:
        if self._process is not None:
            return
        command = [
            *(*cafs_command(), "serve", "--json", "--config", str(self.settings)),
            *(str(self.store), str(self.root)),
        ]
        self._launch(command, subprocess.PIPE)
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE_S)
        if not ready or not self._process.stdout.readline():
            self.stop()
            raise SideError(f"{self.name} does not serve; it said:\n{self._said()}")

    def resource_matches(self, body: Path) -> Timing:
        """One question for all of *body*."""
        ask = Ask("POST", "/resource_matches", 201, body, "Content-Type: application/json")
        return self.load(self.ports["tls"], [ask], self.headers, tls=True)


def _end_with_parent() -> None:
    # A run that is killed must not leave servers behind.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _is_bound(path: Path) -> bool:
    # A bind mount of the same disk is not seen by os.path.ismount.
    text = Path("/proc/self/mountinfo").read_text()
    return any(line.split()[4] == str(path) for line in text.splitlines())
