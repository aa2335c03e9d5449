"""A daemon that answers HTTP itself, without nginx, for tests of what is its own.

Invariant: after the end of the `with` nothing is left of it: no process, no mount, no directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.stocknginx import SECRET, Certificate, make_certificate
from tests.http.wire import Connection, Endpoint, basic, free_ports, wait_for_port
from tests.mount.mounted import Mount

USER, PASSWORD = "blobstore", "the password"
LOGIN = {"Authorization": basic(USER, PASSWORD)}
KEY = "/admin/cc-x/ab/cd/abcd-1"


class DaemonAlone:
    """A mounted store, and clients of its HTTP side."""

    def __init__(self, *options: str, tls: bool, **http: object) -> None:
        self.mount = Mount("--commit-interval", "200ms", *options)
        base = self.mount.base
        self.certificate: Certificate | None = make_certificate(base) if tls else None
        users, secret = base / "users", base / "secret"
        for path, text in ((users, f"{USER}:{{PLAIN}}{PASSWORD}\n"), (secret, f"{SECRET}\n")):
            path.touch(0o600)
            path.write_text(text)
        self.access_log = base / "access.log"
        (port,) = free_ports(1)
        authority = self.certificate.certificate if self.certificate else None
        self.endpoint = Endpoint("localhost", port, authority=authority)
        values: dict[str, object] = {
            "listen": f"127.0.0.1:{port}",
            "users_file": str(users),
            "secret_file": str(secret),
            "access_log": str(self.access_log),
        }
        if self.certificate is not None:
            values["certificate"] = str(self.certificate.certificate)
            values["certificate_key"] = str(self.certificate.key)
        values |= http
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        self.settings = base / "cafs.toml"
        self.settings.write_text("\n".join(["[http]", *lines]) + "\n")
        self.mount.configure(self.settings)

    @property
    def root(self) -> Path:
        """The mountpoint."""
        return self.mount.root

    def file(self, key: str = "cc-x/ab/cd/abcd-1") -> Path:
        """Where a key lies in the mount."""
        return self.mount.root / key

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        self.mount.start()
        wait_for_port(self.endpoint, self.mount.pid)

    def client(self, **headers: str) -> Connection:
        """A connection with the right to write."""
        return Connection(self.endpoint, {**LOGIN, **headers})

    def stranger(self) -> Connection:
        """A connection without credentials."""
        return Connection(self.endpoint)

    def through_socket(self) -> Connection:
        """A connection as nginx makes it."""
        return Connection(UnixEndpoint(self.mount.store / "http.sock"))


class UnixEndpoint(Endpoint):
    """Where a daemon listens for nginx."""

    def __init__(self, path: Path) -> None:
        super().__init__("blobstore.service.cf.internal", 4443)
        object.__setattr__(self, "path", path)

    path: Path

    def connect(self, timeout: float = 30.0, *, receive_buffer: int = 0) -> socket.socket:
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(timeout)
        try:
            raw.connect(str(self.path))
        except BaseException:
            raw.close()
            raise
        return raw


@contextlib.contextmanager
def daemon_alone(*options: str, tls: bool = False, **http: object) -> Iterator[DaemonAlone]:
    """A running daemon; at the end its log must be clean, and its store too."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    daemon = DaemonAlone(*options, tls=tls, **http)
    try:
        daemon.start()
        yield daemon
        if daemon.mount.is_mounted():
            daemon.mount.unmount()
        daemon.mount.run("check", str(daemon.mount.store))
        stray = daemon.mount.unexpected_log_lines()
        assert not stray, "\n".join(stray)
    finally:
        daemon.mount.close()
