"""What a result was measured on and with: machine, kernel, versions, commit.

Only looks; what cannot be found out is an empty string.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("cafs", "pyfuse3", "trio", "lmdb", "xxhash", "zstandard")


def describe(directory: Path) -> dict[str, object]:
    """The machine, with the disk that *directory* is on."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_before": os.getloadavg()[0],
        "filesystem": filesystem(directory),
        "kernel": platform.release(),
        "system": _field("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def commit() -> str:
    """The source's git commit, with ``+`` when files differ from it; empty outside git."""
    here = Path(__file__).parent
    head = _output("git", "-C", str(here), "rev-parse", "--short=12", "HEAD")
    dirty = _output("git", "-C", str(here), "status", "--porcelain")
    return head + ("+" if head and dirty else "")


def filesystem(directory: Path) -> str:
    """The type of the filesystem that *directory* is on, as the kernel names it."""
    return _output("findmnt", "-n", "-o", "FSTYPE", "-T", str(directory))


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _field(path: str, name: str, separator: str = ":") -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(separator)
        if key.strip() == name:
            return value.strip()
    return ""
