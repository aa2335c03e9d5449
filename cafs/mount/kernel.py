"""The kernel's side of the mount: options, and what pyfuse3 cannot set but sysfs can.

Nothing here is needed for being right; what could not be tuned is reported, not hidden.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from cafs.config import MountOptions
from cafs.mount.mountpoint import source_of

MAX_BACKGROUND = 64
"""Requests of read-ahead and write-back that may wait at once (the kernel's default is 12)."""

CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
"""Where a mount's limits are, and ``abort``, by the minor number of its device (fuse.rst)."""


class Tuning(NamedTuple):
    """One thing that was set, or not."""

    name: str
    value: str
    problem: str


def mount_options(store: Path, options: MountOptions) -> set[str]:
    """Options for the mount, as fuse3 takes them (mount.fuse3(8))."""
    result = {"default_permissions", f"fsname={_escaped(source_of(store))}", "subtype=cafs"}
    if options.allow_other:
        result.add("allow_other")
    if os.geteuid() == 0:
        # As on ext4: device nodes and setuid programs work.
        result |= {"dev", "suid"}
    return result


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def tune(device: str, options: MountOptions) -> list[Tuning]:
    """Set read-ahead and queue lengths of the mount with number *device* ("0:53")."""
    minor = device.split(":")[1]
    connection = CONNECTIONS / minor
    return [
        _set(
            "read_ahead_kb",
            Path("/sys/class/bdi") / device / "read_ahead_kb",
            options.read_ahead >> 10,
        ),
        _set("max_background", connection / "max_background", MAX_BACKGROUND),
        _set("congestion_threshold", connection / "congestion_threshold", MAX_BACKGROUND * 3 // 4),
    ]


def _set(name: str, path: Path, value: int) -> Tuning:
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        return Tuning(name, "", f"{path}: {error.strerror}")
    return Tuning(name, str(value), "")
