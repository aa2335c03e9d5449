"""nginx with our module before a mounted store, and the same tree through nginx's static module.

Invariant: at the end of `serving` no process, mount or directory of it is left.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.http.nginx import module_path, need_sources
from tests.http.stocknginx import MIME_TYPES, Certificate, Nginx, make_certificate
from tests.http.wire import Endpoint, free_ports
from tests.mount.mounted import Mount

HANDED_OVER = 418
"""What the place of the daemon answers here."""
SECRET = "s3cr3t"
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """What came back; without the date."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class ModuleServer:
    """A mounted store and an nginx: ``/cafs/`` by the module, ``/mount/`` by the static module."""

    def __init__(self, mount: Mount, user: str = "root", more: str = "") -> None:
        self.mount = mount
        self.nginx = Nginx(mount.base / "nginx")
        certificate = make_certificate(mount.base)
        plain, tls = free_ports(2)
        self.endpoints = {
            "http": Endpoint("localhost", plain),
            "https": Endpoint("localhost", tls, authority=certificate.certificate),
        }
        (mount.base / "secret").write_text(f"{SECRET}\n")
        self.configuration = self.nginx.prefix / "nginx.conf"
        self.configuration.write_text(self._text(certificate, user, more))

    def _text(self, certificate: Certificate, user: str, more: str) -> str:
        prefix, store = self.nginx.prefix, self.mount.store
        directives = f"cafs {store}; cafs_fallback @daemon;"
        return f"""
load_module {module_path()};
{f"user {user};" if os.geteuid() == 0 else ""}
worker_processes 2;
pid {prefix}/nginx.pid;
error_log {prefix}/error.log;
events {{ worker_connections 512; }}
http {{
  include {MIME_TYPES};
  default_type text/html;
  access_log off;
  log_not_found off;
  client_body_temp_path {prefix}/body;
  proxy_temp_path {prefix}/proxy;
  fastcgi_temp_path {prefix}/fastcgi;
  scgi_temp_path {prefix}/scgi;
  uwsgi_temp_path {prefix}/uwsgi;
  sendfile on;
  server {{
    listen 127.0.0.1:{self.endpoints["http"].port};
    listen 127.0.0.1:{self.endpoints["https"].port} ssl;
    ssl_certificate {certificate.certificate};
    ssl_certificate_key {certificate.key};
    location /cafs/ {{ {directives} }}
    location /fast/ {{ {directives} cafs_verify off; }}
    location /cached/ {{ {directives} cafs_verify cached; }}
    location /alone/ {{ cafs {store}; }}
    location /signed/ {{ {directives} cafs_signed_secret_file {self.mount.base}/secret; }}
    location /mount/ {{ alias {self.mount.root}/; }}
    location = /status {{ cafs_status; }}
    location @daemon {{ return {HANDED_OVER}; }}
    {more}
  }}
}}
"""

    def start(self) -> None:
        """Start nginx."""
        self.nginx.start(self.configuration, list(self.endpoints.values()))

    def ask(
        self,
        target: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        scheme: str = "http",
    ) -> Answer:
        """One request on a connection of its own."""
        with contextlib.closing(self.begin(target, method, headers, scheme)) as connection:
            response = connection.getresponse()
            body = response.read()
            kept = tuple(pair for pair in response.getheaders() if pair[0] != "Date")
            return Answer(response.status, kept, body)

    def begin(
        self,
        target: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        scheme: str = "http",
    ) -> http.client.HTTPConnection:
        """Send a request; its answer is for the caller to read."""
        endpoint = self.endpoints[scheme]
        connection = http.client.HTTPConnection(endpoint.address, endpoint.port)
        connection.sock = endpoint.connect(TIMEOUT_S)
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": "localhost", **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders()
        return connection

    def status(self, target: str, method: str = "HEAD") -> int:
        """Only the status of an answer."""
        return self.ask(target, method).status

    def counter(self, name: str) -> int:
        """A line of ``cafs_status``."""
        for line in self.ask("/status").body.decode().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
        raise AssertionError(f"no counter {name}")

    def sync(self) -> None:
        """Have everything committed: an fsync of the root holds what was before it."""
        fd = os.open(self.mount.root, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def settle(self, target: str, method: str = "HEAD") -> int:
        """The status of a request once nothing under its keys is pending any more.

        Marks may outlive a commit by one: each round makes another.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while (status := self.status(target, method)) == HANDED_OVER:
            assert time.monotonic() < deadline, f"{target} stays pending"
            (self.mount.root / ".settle").write_bytes(b"")
            self.sync()
        return status

    def write(self, name: str, data: bytes, *, sync: bool = True) -> Path:
        """A file of the tree, committed unless told otherwise."""
        path = self.mount.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if sync:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        return path

    def close(self) -> None:
        """Stop nginx, then the daemon, and remove everything."""
        try:
            self.nginx.stop()
        finally:
            self.mount.close()


@contextlib.contextmanager
def serving(
    *options: str, user: str = "root", more: str = "", store: Path | None = None
) -> Iterator[ModuleServer]:
    """A started server over a started mount, of a copy of *store* if there is one."""
    need_sources()
    mount = Mount(*options, store=store)
    server = None
    try:
        server = ModuleServer(mount, user, more)
        mount.start()
        server.start()
        yield server
    finally:
        if server is not None:
            server.close()
        else:
            mount.close()


def receive_all(connection: socket.socket) -> tuple[bytes, str]:
    """What comes until the end, and how that was: ``clean``, ``reset`` or ``ragged`` (TLS)."""
    got = bytearray()
    try:
        while piece := connection.recv(65536):
            got += piece
    except ConnectionResetError:
        return bytes(got), "reset"
    except ssl.SSLError:
        return bytes(got), "ragged"
    return bytes(got), "clean"
