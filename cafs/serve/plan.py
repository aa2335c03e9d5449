"""What is to run in front of a store: the settings, turned into files for nginx.

Invariant: :func:`make` changes nothing and raises whatever can be foreseen; only
:meth:`Plan.write` writes, and only below the plan's own directory.
"""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cafs import secrecy
from cafs.config import Settings
from cafs.durable import Disk
from cafs.errors import ConfigError, from_os_error
from cafs.http_options import HttpOptions
from cafs.serve import nginx_config, nginx_program, rundir
from cafs.serve.backend import Credentials, Directory, Indexed
from cafs.serve.nginx_program import Nginx
from cafs.serve_options import ServeOptions

SOCKET: Final = "http.sock"


@dataclass(frozen=True)
class Plan:
    """A configuration of nginx that has not been written yet."""

    nginx: Nginx
    run_dir: Path
    text: str
    secret_include: str | None
    module: Path | None
    warnings: tuple[str, ...] = ()
    """What the operator should hear of, though nginx would take it."""
    shared: tuple[tuple[str, Path | None], ...] = ()
    """Settings that a daemon behind nginx must have the same of."""

    @property
    def config(self) -> Path:
        """Where :meth:`write` puts the configuration."""
        return self.run_dir / rundir.CONFIG

    @property
    def include(self) -> Path | None:
        """Where :meth:`write` puts the secret of the links, if there is one."""
        return None if self.secret_include is None else self.run_dir / rundir.SECRET_INCLUDE

    def write(self) -> None:
        """Write the configuration, and the include with the secret of the links.

        Raises :class:`AccessError` when the directory is another user's, or what the disk says.
        """
        try:
            rundir.make(self.run_dir)
            if self.include is not None and self.secret_include is not None:
                Disk().write_file(self.include, self.secret_include.encode(), 0o600)
            Disk().write_file(self.config, self.text.encode(), 0o644)
        except OSError as error:
            raise from_os_error(error, f"write nginx's configuration in {self.run_dir}") from error


def make(
    store: Path, settings: Settings, *, http: HttpOptions | None = None, run_dir: Path | None = None
) -> Plan:
    """The plan for *store*, an existing one.

    *http* stands in for the settings' own section, *run_dir* for the directory that they name.
    Raises :class:`ConfigError` for what is missing in them, :class:`NginxError` for what is
    missing on the machine.
    """
    http = http or settings.http
    if not http.serve:
        raise ConfigError(
            "http.serve = false, but nginx needs the daemon's socket",
            advice="leave it out, or serve without nginx: cafs serve --no-nginx",
        )
    nginx = nginx_program.find(settings.serve.nginx)
    module = nginx_program.index_module(nginx, settings.serve.nginx_module)
    mount = settings.mount
    socket = http.socket or store / SOCKET
    backend = Indexed(store, socket, module, mount.pending_file, mount.grace)
    credentials = _credentials(settings.serve, http)
    where = run_dir or settings.serve.run_dir or rundir.default(store)
    shared = (
        ("http.socket", http.socket),
        ("http.secret_file", http.secret_file),
        ("mount.pending_file", settings.mount.pending_file),
    )
    plan = _plan(settings.serve, http, nginx, credentials, backend, where)
    return dataclasses.replace(plan, shared=shared)


def make_own(store: Path, settings: Settings) -> Plan:
    """The plan of an nginx whose daemon runs beside it, as the same user.

    Raises what :func:`make` raises, and :class:`ConfigError` for workers of another user.
    """
    name = settings.serve.worker_user
    if name is not None and _worker_user(settings.serve).pw_uid != os.geteuid():
        raise ConfigError(
            f"serve.worker_user = {name}: cafs serve runs as another user, and what its daemon "
            "writes nobody else may read",
            advice=f"leave it out, or run cafs serve as {name}; the setting is for "
            "cafs nginx-config, and a daemon that runs as that user",
        )
    return make(store, settings)


def make_classic(root: Path, settings: Settings, run_dir: Path) -> Plan:
    """The plan of an nginx that serves the directory *root* with its own dav modules.

    *root* is a mount, or any other directory.  Raises what :func:`make` raises.
    """
    nginx = nginx_program.find(settings.serve.nginx)
    if not nginx.has("http_dav_module"):
        raise ConfigError(f"{nginx.program} was built without http_dav_module")
    credentials = _credentials(settings.serve, settings.http)
    return _plan(settings.serve, settings.http, nginx, credentials, Directory(root), run_dir)


def _plan(
    options: ServeOptions,
    http: HttpOptions,
    nginx: Nginx,
    credentials: Credentials,
    backend: Indexed | Directory,
    run_dir: Path,
) -> Plan:
    if credentials.secret is not None and not nginx.has("http_secure_link_module"):
        raise ConfigError(
            f"{nginx.program} was built without http_secure_link_module, which checks links",
            advice="use another nginx, or set no http.secret_file",
        )
    text = nginx_config.render(options, http, nginx, credentials, backend, run_dir)
    include = None
    if credentials.secret is not None:
        include = nginx_config.secret_include(read_secret(credentials.secret))
    module = backend.module if isinstance(backend, Indexed) else None
    return Plan(nginx, run_dir, text, include, module, tuple(secrecy.exposed(http, options)))


def read_secret(path: Path) -> str:
    """The one line in *path*; raises :class:`ConfigError` when it is empty or cannot be read."""
    try:
        secret = path.read_text().strip("\r\n")
    except OSError as error:
        raise ConfigError(f"http.secret_file = {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"http.secret_file = {path}: nginx takes UTF-8 only") from None
    # The daemon and the module take the same bytes: blanks are part of a secret.
    if not secret or "\n" in secret:
        raise ConfigError(f"http.secret_file = {path}: it must have one line")
    return secret


def _credentials(options: ServeOptions, http: HttpOptions) -> Credentials:
    if http.certificate is None or http.users_file is None:
        missing = "http.certificate" if http.certificate is None else "http.users_file"
        raise ConfigError(
            f"{missing} is not set, and nginx needs it",
            advice="set it, or try things out with: cafs serve --dev",
        )
    key = http.certificate_key or http.certificate
    for name, path in (
        ("http.certificate", http.certificate),
        ("http.certificate_key", key),
        ("http.users_file", http.users_file),
        ("serve.public_certificate", options.public_certificate),
        ("serve.public_certificate_key", options.public_certificate_key),
    ):
        try:
            is_there = path is None or path.is_file()
        except OSError as error:
            # For instance in a directory that this user may not enter.
            raise ConfigError(f"{name} = {path}: {error.strerror}") from None
        if not is_there:
            raise ConfigError(f"{name} = {path}: there is no such file")
    return Credentials(
        users=http.users_file,
        certificate=http.certificate,
        certificate_key=key,
        public_certificate=options.public_certificate or http.certificate,
        public_certificate_key=options.public_certificate_key or key,
        secret=http.secret_file,
        worker=_worker(options),
    )


def _worker(options: ServeOptions) -> str | None:
    """Whom the workers run as: without a word nginx would take `nobody`, who may read nothing."""
    if os.geteuid() != 0:
        return None
    user = _worker_user(options)
    try:
        return f"{user.pw_name} {grp.getgrgid(user.pw_gid).gr_name}"
    except KeyError:
        raise ConfigError(f"{user.pw_name}: there is no group {user.pw_gid}") from None


def _worker_user(options: ServeOptions) -> pwd.struct_passwd:
    name = options.worker_user
    try:
        return pwd.getpwuid(os.geteuid()) if name is None else pwd.getpwnam(name)
    except KeyError:
        who = f"user {os.geteuid()}" if name is None else f"serve.worker_user = {name}"
        raise ConfigError(f"{who}: no such user") from None
