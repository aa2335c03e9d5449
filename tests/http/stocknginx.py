"""The nginx that Debian ships, configured as Cloud Foundry configures its blobstore.

Owns the configuration text and one nginx with its directory.  Invariant: after `stop` no process
of it is left, however it was started or died.  What differs from Cloud Foundry's: ports, names,
the user (there is no vcap here), and a signer, which is another program and not part of nginx.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.http.wire import Endpoint, free_ports, wait_for_port

MODULES = Path("/usr/lib/nginx/modules")
MIME_TYPES = Path("/etc/nginx/mime.types")
INTERNAL_NAME = "blobstore.service.cf.internal"
PUBLIC_NAME = "blobstore.example.com"
USER, PASSWORD, SECRET = "blobstore-user", "pass w0rd", "s3cr3t"
STOP_TIMEOUT_S = 20.0


def worker_user() -> pwd.struct_passwd:
    """Who the workers run as: what vcap is in a Cloud Foundry."""
    return pwd.getpwnam("www-data") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def need_nginx() -> None:
    """Skip where there is no nginx with the WebDAV modules."""
    if shutil.which("nginx") is None or not (MODULES / "ngx_http_dav_ext_module.so").exists():
        pytest.skip("needs Debian's nginx and libnginx-mod-http-dav-ext")


@dataclass(frozen=True)
class Certificate:
    """A certificate of our own for both names."""

    certificate: Path
    key: Path


def make_certificate(directory: Path) -> Certificate:
    """An ECDSA certificate, as ``cafs serve`` makes them."""
    made = Certificate(directory / "server.crt", directory / "server.key")
    names = f"subjectAltName=DNS:{INTERNAL_NAME},DNS:{PUBLIC_NAME},DNS:localhost,IP:127.0.0.1"
    _run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=test", "-addext", names),
        *("-keyout", str(made.key), "-out", str(made.certificate)),
    )
    return made


@dataclass(frozen=True)
class Ports:
    """The three servers of a blobstore."""

    internal: Endpoint
    public_tls: Endpoint
    public: Endpoint


def choose_ports(certificate: Certificate) -> Ports:
    """Three servers on ports that are free now."""
    one, two, three = free_ports(3)
    trusted = certificate.certificate
    return Ports(
        Endpoint(INTERNAL_NAME, one, authority=trusted),
        Endpoint(PUBLIC_NAME, two, authority=trusted),
        Endpoint(PUBLIC_NAME, three),
    )


class Nginx:
    """One nginx process: a configuration in, three servers out."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.error_log = prefix / "error.log"
        self._process: subprocess.Popen[bytes] | None = None
        prefix.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        """The master's process id."""
        assert self._process is not None, "nginx is not running"
        return self._process.pid

    def start(self, configuration: Path, endpoints: Sequence[Endpoint]) -> None:
        """Run it and wait until every endpoint accepts connections."""
        assert self._process is None, "nginx runs already"
        with (self.prefix / "stderr.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("nginx", "-p", str(self.prefix), "-e", str(self.error_log)),
                    *("-c", str(configuration), "-g", "daemon off;"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            for endpoint in endpoints:
                wait_for_port(endpoint, self._process.pid)
        except BaseException as error:
            self.stop()
            raise AssertionError(f"nginx did not start: {self.log_text()}") from error

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def log_text(self) -> str:
        """Whatever it wrote."""
        logs = (self.prefix / "stderr.log", self.error_log)
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def stop(self) -> None:
        """Ask it to go, then make it go."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass  # what follows does not ask
        finally:
            # Workers share the master's process group and may outlive a master that was killed.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(STOP_TIMEOUT_S)


def write_users(directory: Path) -> Path:
    """A file of users as Cloud Foundry writes it, and a little more."""
    users = directory / "write_users"
    users.write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n\n# more\nother:{{PLAIN}}other:a comment\n")
    users.chmod(0o644)
    return users


def configuration(
    root: Path, temp: Path, prefix: Path, certificate: Certificate, ports: Ports, workers: int = 2
) -> str:
    """nginx.conf for a blobstore at *root* whose request bodies gather in *temp*."""
    users = write_users(prefix)
    user = f"user {worker_user().pw_name};" if os.geteuid() == 0 else ""
    tls = (
        f"ssl_certificate {certificate.certificate};\n"
        f"    ssl_certificate_key {certificate.key};\n"
        "    ssl_protocols TLSv1.2 TLSv1.3;\n"
        "    ssl_session_cache shared:SSL:10m;"
    )
    links = _signed_locations(root)
    return f"""
load_module {MODULES}/ngx_http_dav_ext_module.so;
{user}
worker_processes {workers};
pid {prefix}/nginx.pid;
error_log {prefix}/error.log;

events {{
  worker_connections 8192;
}}

http {{
  include {MIME_TYPES};
  default_type text/html;
  access_log {prefix}/access.log;
  server_tokens off;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_timeout 75 20;
  client_body_temp_path {temp};
  proxy_temp_path {prefix}/proxy;
  fastcgi_temp_path {prefix}/fastcgi;
  scgi_temp_path {prefix}/scgi;
  uwsgi_temp_path {prefix}/uwsgi;

  server {{
    listen 127.0.0.1:{ports.internal.port} ssl;
    server_name {INTERNAL_NAME};
    {tls}
    root {root}/;
    allow 127.0.0.0/8;
    deny all;
    client_max_body_size 0;

    location /admin/ {{
      auth_basic "Blobstore Admin";
      auth_basic_user_file {users};
      dav_methods DELETE PUT COPY;
      dav_ext_methods PROPFIND;
      create_full_put_path on;
      alias {root}/;
    }}
    {links}
  }}

  server {{
    listen 127.0.0.1:{ports.public_tls.port} ssl;
    server_name {PUBLIC_NAME};
    {tls}
    root {root}/;
    {links}
  }}

  server {{
    listen 127.0.0.1:{ports.public.port};
    server_name {PUBLIC_NAME};
    root {root}/;
    {links}
  }}
}}
"""


def _signed_locations(root: Path) -> str:
    link = f"""
      secure_link $arg_md5,$arg_expires;
      secure_link_md5 "$secure_link_expires$uri {SECRET}";
      if ($secure_link = "") {{ return 403; }}
      if ($secure_link = "0") {{ return 410; }}
      alias {root}/;"""
    return f"""
    location /read/ {{
      if ($request_method !~ ^(GET|HEAD)$) {{ return 405; }}{link}
    }}

    location /write/ {{
      if ($request_method !~ ^(PUT)$) {{ return 405; }}
      dav_methods PUT;
      create_full_put_path on;{link}
    }}"""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
