"""The nginx that is installed: where it is, what it was built with, where its modules lie.

Only asks; starting it is :mod:`cafs.serve.nginx_process`.  Invariant: what is missing is said
by name here, before a configuration that nginx would refuse is written.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from cafs.errors import NginxError

MODULE: Final = "ngx_http_cafs_module.so"
HEADERS_MODULE: Final = "ngx_http_headers_more_filter_module.so"
DAV_EXT_MODULE: Final = "ngx_http_dav_ext_module.so"


class Nginx(NamedTuple):
    """An nginx program and what it says of itself."""

    program: Path
    version: str
    """As ``1.22.1``."""
    arguments: str
    """What its ``configure`` was called with."""
    modules_dir: Path
    mime_types: Path | None
    """The table that gives a name its Content-Type; None when it is not there."""

    def has(self, flag: str) -> bool:
        """Whether ``--with-<flag>`` was asked for when it was built."""
        return re.search(rf"--with-{re.escape(flag)}(?![\w=])", self.arguments) is not None

    def module(self, name: str) -> Path | None:
        """A dynamic module of this nginx, if it is installed."""
        path = self.modules_dir / name
        return path if _may_be_read(path) else None


def find(named: Path | None = None) -> Nginx:
    """The nginx *named*, or the one in PATH (or in /usr/sbin, which a user's PATH may lack).

    Raises :class:`NginxError` when there is none, or it does not say what it is.
    """
    path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
    found = shutil.which(str(named or "nginx"), path=path)
    if found is None:
        raise NginxError(
            f"{named or 'nginx'}: there is no such program",
            advice="install nginx (Debian: apt-get install nginx), name it with serve.nginx, "
            "or let the daemon listen by itself: cafs serve --no-nginx",
        )
    try:
        done = subprocess.run([found, "-V"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NginxError(f"{found}: cannot be run: {error.strerror}") from None
    return parse(Path(found), done.stderr)


def parse(program: Path, said: str) -> Nginx:
    """What ``nginx -V`` *said*; raises :class:`NginxError` when that was not nginx."""
    version = re.search(r"nginx version: \S*?/(\d+\.\d+\.\d+)", said)
    if version is None:
        raise NginxError(f"{program}: is not nginx: it does not tell its version")
    arguments = said.partition("configure arguments:")[2].strip()
    prefix = _argument(arguments, "prefix") or "/usr/local/nginx"
    modules = Path(prefix, _argument(arguments, "modules-path") or "modules")
    conf = Path(prefix, _argument(arguments, "conf-path") or "conf/nginx.conf")
    mime_types = conf.parent / "mime.types"
    return Nginx(
        program, version[1], arguments, modules, mime_types if _may_be_read(mime_types) else None
    )


def _may_be_read(path: Path) -> bool:
    """Whether there is such a file, as far as this user can tell: nginx runs as the same."""
    try:
        return path.is_file()
    except OSError:
        return False


def _argument(arguments: str, name: str) -> str | None:
    match = re.search(rf"--{name}=(\S+)", arguments)
    return match[1] if match else None


def index_module(nginx: Nginx, named: Path | None) -> Path | None:
    """The module that answers from the index: *named*, or the one among nginx's modules.

    None when it was never built; raises :class:`NginxError` when the one that was named is not
    there.
    """
    if named is not None:
        if not _may_be_read(named):
            raise NginxError(
                f"{named}: there is no such nginx module, or it cannot be looked at",
                advice="build it with native/nginx/build.sh, or correct serve.nginx_module",
            )
        return named
    return nginx.module(MODULE)
