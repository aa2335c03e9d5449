"""The nginx module, built from its sources by the documented command, once for each state of them.

Owns the cache of built modules, in ``build/`` of this repository.  Invariant: a path that
`module_path` returns holds a module that was built from the sources as they are now, for the
nginx that is installed, and that this nginx has taken.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "native" / "nginx"
SHARED = (ROOT / "native" / "common", ROOT / "native" / "include")
NGINX_SOURCE = Path("/usr/share/nginx/src")
BUILD_TIMEOUT_S = 300.0


def need_sources() -> None:
    """Skip where there is no nginx, or nothing to build a module for it with."""
    if shutil.which("nginx") is None or not NGINX_SOURCE.is_dir():
        pytest.skip("needs Debian's nginx and nginx-dev")


def _state() -> str:
    """A digest of all that the module depends on."""
    digest = hashlib.sha256()
    about = subprocess.run(["nginx", "-V"], capture_output=True, check=True)
    digest.update(about.stderr)
    for file in sorted(path for directory in (SOURCES, *SHARED) for path in directory.iterdir()):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def module_path() -> Path:
    """``ngx_http_cafs_module.so``; built if it is not there yet, by one process at a time."""
    need_sources()
    cache = ROOT / "build" / "nginx"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = cache / _state()
        module = target / "ngx_http_cafs_module.so"
        if not module.exists():
            for old in cache.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            _build(target)
        return module


def _build(target: Path) -> None:
    done = subprocess.run(
        [str(SOURCES / "build.sh"), "--install", str(target)],
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
