"""Every server that claims the blobstore's contract, behind one small interface.

Owns how each is started and stopped.  Invariant: after `close` nothing of a target is left, and
a store that it had was found clean by `cafs check` if the target was closed in good order.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from cafs.serve import nginx_program
from tests.fault.smalldisk import wait_until
from tests.http import stocknginx
from tests.http.nginx import module_path
from tests.http.stocknginx import PASSWORD, USER, Nginx, Ports, worker_user
from tests.http.wire import TIMEOUT_S, Connection, basic, http_date
from tests.mount.mounted import Mount, filesystem_type, public_directory

PATIENCE_S: Final = 600.0
"""For an answer to what nginx does in one go, however large it is, on a machine with other work."""
OPTIONS: Final = ("--commit-interval", "200ms", "--grace", "1s")
"""Of the daemons: what takes a while by default is not to slow the tests down."""


class Target:
    """A running blobstore and the tree that it serves."""

    name: str
    root: Path
    """The tree, as the file system shows it."""
    ports: Ports

    @property
    def is_cafs(self) -> bool:
        """Whether the tree is a mounted store."""
        return self.store_mount is not None

    @property
    def store_mount(self) -> Mount | None:
        """The mounted store, where there is one."""
        return None

    def stored_bytes(self) -> int:
        """Bytes of chunks that the store has committed."""
        mount = self.store_mount
        assert mount is not None
        root = os.open(self.root, os.O_RDONLY)
        os.fsync(root)  # what the mount still keeps to itself
        os.close(root)
        answer: int = json.loads(mount.run("status", str(mount.store), "--json"))["stored_bytes"]
        return answer

    def admin(self, *, timeout_s: float = TIMEOUT_S, **headers: str) -> Connection:
        """A connection to the internal server with the right to write."""
        return Connection(
            self.ports.internal,
            {"Authorization": basic(USER, PASSWORD), "Accept": "*/*", **headers},
            timeout=timeout_s,
        )

    def internal(self) -> Connection:
        """A connection to the internal server without credentials."""
        return Connection(self.ports.internal)

    def public(self, *, tls: bool = False) -> Connection:
        """A connection to one of the public servers."""
        return Connection(self.ports.public_tls if tls else self.ports.public)

    def ready(self) -> None:
        """Return when a daemon that was just started answers."""

    def restart(self) -> None:
        """Restart whatever serves the tree, in good order."""
        raise NotImplementedError

    def close_well(self) -> None:
        """Stop in good order and complain about anything amiss; `close` is still to follow."""

    def close(self) -> None:
        """Take everything away, by force where it must be."""
        raise NotImplementedError


class _Served(Target):
    """Directories that every target has: its own, and one for request bodies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.base = public_directory()
        self.certificate = stocknginx.make_certificate(self.base)
        self.ports = stocknginx.choose_ports(self.certificate)
        self.nginx = Nginx(self.base / "nginx")

    def _own_root(self) -> None:
        """What bpm does before each start of nginx."""
        user = worker_user()
        os.chmod(self.root, 0o700)
        os.chown(self.root, user.pw_uid, user.pw_gid)

    def _start_stock(self, temp: Path) -> None:
        text = stocknginx.configuration(
            self.root, temp, self.nginx.prefix, self.certificate, self.ports
        )
        path = self.nginx.prefix / "nginx.conf"
        path.write_text(text)
        self._start(path)

    def _start(self, path: Path) -> None:
        self.nginx.start(path, [self.ports.internal, self.ports.public_tls, self.ports.public])

    def close(self) -> None:
        self.nginx.stop()
        shutil.rmtree(self.base, ignore_errors=True)


class Reference(_Served):
    """The control: stock nginx over a plain directory, request bodies on another disk."""

    def __init__(self) -> None:
        super().__init__("reference")
        self._data = Path(tempfile.mkdtemp(prefix="cafs-data-", dir="/dev/shm"))
        try:
            self._data.chmod(0o755)
            self.root = self.base / "shared"
            self.root.mkdir()
            if (found := filesystem_type(self.root)) != "ext4":
                pytest.skip(f"the temporary directory is on {found}, which is no control")
            self._own_root()
            self._start_stock(self._data / "tmp")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._data, ignore_errors=True)


class _Mounted(_Served):
    """A target whose tree is a mounted store."""

    def __init__(self, name: str, mount: Mount | None = None) -> None:
        if not os.path.exists("/dev/fuse"):
            pytest.skip("there is no /dev/fuse here")
        super().__init__(name)
        self.mount = mount or Mount(*OPTIONS)
        self.root = self.mount.root
        try:
            self._prepare()
            self.mount.start()
            self._own_root()
            self.serve()
        except BaseException:
            self.close()
            raise

    @property
    def store_mount(self) -> Mount:
        return self.mount

    def _prepare(self) -> None:
        """What has to be there before the daemon starts."""

    def serve(self) -> None:
        """Start what answers HTTP."""
        raise NotImplementedError

    def restart(self) -> None:
        self.nginx.stop()
        self.mount.restart()
        self.serve()

    def close_well(self) -> None:
        self.nginx.stop()
        self.mount.unmount()
        self.mount.run("check", str(self.mount.store))
        stray = self.mount.unexpected_log_lines()
        assert not stray, "\n".join(stray)

    def close(self) -> None:
        self.nginx.stop()
        self.mount.close()
        super().close()


class Stock(_Mounted):
    """Stock nginx over a mounted store, request bodies on another disk: as shipped."""

    def __init__(self, mount: Mount | None = None) -> None:
        super().__init__("stock", mount)

    def serve(self) -> None:
        self._start_stock(self.base / "tmp")


class StockInside(_Mounted):
    """Stock nginx over a mounted store, request bodies in its own ``tmp/uploads``."""

    def __init__(self, mount: Mount | None = None) -> None:
        super().__init__("stock-inside", mount)

    def serve(self) -> None:
        (self.root / "tmp").mkdir(exist_ok=True)
        os.chown(self.root / "tmp", worker_user().pw_uid, worker_user().pw_gid)
        self._start_stock(self.root / "tmp" / "uploads")


class _Configured(_Mounted):
    """A target that cafs itself answers for, from a settings file."""

    def __init__(self, name: str, mount: Mount | None = None) -> None:
        self.mount = mount or Mount(*OPTIONS)
        self.settings = self.mount.base / "cafs.toml"
        self.mount.configure(self.settings)
        super().__init__(name, self.mount)

    def _prepare(self) -> None:
        self.ports = self._ports()
        secret = self.base / "secret"
        secret.write_text(f"{stocknginx.SECRET}\n")
        users = stocknginx.write_users(self.base)
        for path in (users, secret):
            path.chmod(0o600)
        sections: dict[str, dict[str, str | int]] = {
            "http": {
                "certificate": str(self.certificate.certificate),
                "certificate_key": str(self.certificate.key),
                "users_file": str(users),
                "secret_file": str(secret),
                **self._http(),
            },
            "serve": self._serve(),
        }
        lines = []
        for section, values in sections.items():
            lines.append(f"[{section}]")
            lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        self.settings.write_text("\n".join(lines) + "\n")

    def ready(self) -> None:
        # The mount answers first.
        wait_until("the daemon answers HTTP", self._is_ready)

    def _is_ready(self) -> bool:
        try:
            with self.internal() as http:
                return http.request("GET", "/healthz").status == 200
        except OSError:
            return False

    def _ports(self) -> Ports:
        return self.ports

    def _http(self) -> dict[str, str | int]:
        return {}

    def _serve(self) -> dict[str, str | int]:
        return {}


class Daemon(_Configured):
    """The daemon alone, on one TCP port that is the internal server and the public one."""

    def __init__(self, mount: Mount | None = None) -> None:
        super().__init__("daemon", mount)

    def _ports(self) -> Ports:
        internal = self.ports.internal
        return Ports(internal, internal, internal)

    def _http(self) -> dict[str, str | int]:
        return {"listen": f"127.0.0.1:{self.ports.internal.port}"}

    def serve(self) -> None:
        self.ready()


class Module(_Configured):
    """nginx with our module, as ``cafs nginx-config`` has it, and the daemon behind it."""

    def __init__(self, mount: Mount | None = None, name: str = "module") -> None:
        super().__init__(name, mount)

    def _serve(self) -> dict[str, str | int]:
        return {
            "nginx_module": str(module_path()),
            "listen_address": "127.0.0.1",
            "internal_port": self.ports.internal.port,
            "public_tls_port": self.ports.public_tls.port,
            "public_port": self.ports.public.port,
            "public_name": stocknginx.PUBLIC_NAME,
            "workers": 2,
        }

    def serve(self) -> None:
        store, prefix = str(self.mount.store), self.nginx.prefix
        configured = ("--config", str(self.settings))
        self.mount.run("nginx-config", store, "--write", str(prefix), *configured)
        self._start(prefix / "nginx.conf")
        self.ready()


class Unbuilt(Module):
    """The same where the module has not been built: the daemon answers everything."""

    def __init__(self, mount: Mount | None = None) -> None:
        if nginx_program.find().module(nginx_program.MODULE) is not None:
            pytest.skip("the module is installed in this nginx")
        super().__init__(mount, "unbuilt")

    def _serve(self) -> dict[str, str | int]:
        return {name: value for name, value in super()._serve().items() if name != "nginx_module"}


@contextlib.contextmanager
def mirror(target: Target) -> Iterator[Connection]:
    """Stock nginx over the mount of a running target, beside what serves it already."""
    base = public_directory()
    nginx = Nginx(base / "nginx")
    try:
        certificate = stocknginx.make_certificate(base)
        ports = stocknginx.choose_ports(certificate)
        text = stocknginx.configuration(
            target.root, base / "tmp", nginx.prefix, certificate, ports, workers=1
        )
        path = nginx.prefix / "nginx.conf"
        path.write_text(text)
        nginx.start(path, [ports.internal])
        with Connection(ports.internal, {"Authorization": basic(USER, PASSWORD)}) as http:
            yield http
    finally:
        nginx.stop()
        shutil.rmtree(base, ignore_errors=True)


TARGETS: Final[dict[str, Callable[[], Target]]] = {
    "reference": Reference,
    "stock": Stock,
    "stock-inside": StockInside,
    "daemon": Daemon,
    "module": Module,
    "unbuilt": Unbuilt,
}

CAFS: Final = tuple(name for name in TARGETS if name != "reference")
"""Those whose tree is a mounted store."""
DAV: Final = ("reference", "stock", "stock-inside")
"""Those whose answers come from nginx's own WebDAV modules."""
OURS: Final = tuple(name for name in TARGETS if name not in DAV)
"""Those whose answers are cafs's own."""


class Area:
    """A fresh type directory of one target: what a test may change as it likes."""

    def __init__(self, target: Target, name: str) -> None:
        self.target = target
        self.name = name
        self.http = target.admin()
        self.directory = target.root / name
        """The directory as the file system shows it."""

    def be_patient(self) -> None:
        """Wait for answers as long as it takes to do something large."""
        self.http.close()
        self.http = self.target.admin(timeout_s=PATIENCE_S)

    def url(self, key: str = "ab/cd/abcd-1") -> str:
        """The path of *key* on the internal server."""
        return f"/admin/{self.name}/{key}"

    def file(self, key: str = "ab/cd/abcd-1") -> Path:
        """Where *key* lies in the file system."""
        return self.directory / key

    def put(
        self, key: str = "ab/cd/abcd-1", data: bytes = b"content", mtime: float | None = None
    ) -> str:
        """Store *data* and return the URL's path; it must be new or replaced."""
        date = {} if mtime is None else {"Date": http_date(mtime)}
        reply = self.http.request("PUT", self.url(key), data, date)
        assert reply.status in (201, 204), reply
        return self.url(key)

    def copy(self, source: str, destination: str, **headers: str) -> int:
        """COPY between keys; returns the status."""
        url = self.target.ports.internal.base + self.url(destination)
        return self.http.request(
            "COPY", self.url(source), None, {"Destination": url, **headers}
        ).status

    def names(self) -> list[str]:
        """Every file and directory below, relative, sorted; directories end in a slash."""
        found = []
        for directory, directories, files in os.walk(self.directory):
            base = Path(directory).relative_to(self.directory)
            found += [f"{base / name}/" for name in directories]
            found += [str(base / name) for name in files]
        return sorted(found)

    def close(self) -> None:
        """Close the connection and remove the directory."""
        self.http.close()
        shutil.rmtree(self.directory, ignore_errors=True)
