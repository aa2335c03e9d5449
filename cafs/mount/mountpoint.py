"""What is mounted where, and whether a store may be mounted on a directory.

Looks only: nothing here changes a mount or a file.  Invariant: the mount table is read before
a directory is touched, because touching a mount whose daemon hangs would hang, too.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Final, NamedTuple

from cafs import lock
from cafs.errors import FuseMissingError, MountpointError, StoreBusyError

FSTYPE: Final = "fuse.cafs"
"""In the mount table; the source is then the store's directory."""

FUSE_DEVICE: Final = Path("/dev/fuse")
FUSE_CONF: Final = Path("/etc/fuse.conf")

LAST_WRITE_S: Final = 30.0
"""How long a killed daemon's last transaction may take."""

NAMES_SHOWN: Final = 5
"""How many hidden names a warning tells."""

_PERCENT = re.compile(rb"%([0-9A-F]{2})")
_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo, as far as cafs looks at it."""

    path: Path
    fstype: str
    source: str
    device: str
    """Major and minor number, as in /sys/class/bdi: "0:53"."""

    @property
    def store(self) -> Path | None:
        """The store that is mounted here; None when this is no mount of cafs."""
        return store_of(self.source) if self.fstype == FSTYPE else None


def source_of(store: Path) -> str:
    """What the mount table is to show for *store*: its path in ASCII, other bytes as ``%XX``.

    pyfuse3 takes mount options in ASCII only.
    """
    return "".join(
        chr(byte) if byte < 0x80 and byte != ord("%") else f"%{byte:02X}"
        for byte in os.fsencode(store)
    )


def store_of(source: str) -> Path:
    """The store that :func:`source_of` gave *source* for."""
    raw = _PERCENT.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(source))
    return Path(os.fsdecode(raw))


class Hidden(NamedTuple):
    """What lies in a directory and cannot be seen while something is mounted on it."""

    names: list[str]
    """The first few, sorted."""
    total: int

    def __str__(self) -> str:
        more = self.total - len(self.names)
        return ", ".join(self.names) + (f" and {more:,} more" if more else "")


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts of a mountinfo file (proc_pid_mountinfo(5)), oldest first."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if separator and len(left) >= 6 and len(right) >= 2:
            path, source = Path(_unescape(left[4])), _unescape(right[1])
            mounts.append(Mount(path, right[0], source, left[2]))
    return mounts


def _unescape(text: str) -> str:
    # The kernel writes space, tab, newline and backslash as octal; others are bytes as they are.
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def mounts() -> list[Mount]:
    """What this process sees mounted, oldest first."""
    text = Path("/proc/self/mountinfo").read_bytes()
    return parse_mountinfo(os.fsdecode(text))


def mount_at(path: Path, table: Sequence[Mount] | None = None) -> Mount | None:
    """The topmost mount whose mountpoint is *path* (as :func:`canonical` gives it)."""
    found = [mount for mount in (mounts() if table is None else table) if mount.path == path]
    return found[-1] if found else None


def mounts_of_cafs(table: Sequence[Mount] | None = None) -> list[Mount]:
    """Mounts of cafs, oldest first."""
    return [mount for mount in (mounts() if table is None else table) if mount.store]


def canonical(path: Path) -> Path:
    """*path* absolute and without symbolic links, without touching what is mounted on it."""
    absolute = Path(os.path.abspath(path))
    parent = Path(os.path.realpath(absolute.parent))
    beside = parent / absolute.name
    if mount_at(beside) is not None:
        return beside
    return Path(os.path.realpath(absolute))


def is_stale(mount: Mount) -> bool:
    """Whether *mount* is one of cafs whose daemon is gone, though another may serve its store."""
    if mount.store is None:
        return False
    held_by = lock.holder(mount.store)
    if held_by is None or not held_by.alive:
        return True
    if held_by.mountpoint is None or held_by.mountpoint == mount.path:
        return False
    # Several places may show one mount (mount --bind): those have one device.
    serving = mount_at(held_by.mountpoint)
    return serving is not None and serving.store == mount.store and serving.device != mount.device


def check_fuse(allow_other: bool, device: Path = FUSE_DEVICE, conf: Path = FUSE_CONF) -> None:
    """Raise :class:`FuseMissingError` when this user cannot mount a FUSE filesystem."""
    if not device.exists():
        raise FuseMissingError(f"{device} is missing: the kernel module fuse is not loaded")
    if not os.access(device, os.R_OK | os.W_OK):
        raise FuseMissingError(
            f"{device} may not be opened by this user",
            advice=f"run as root, or: chmod 666 {device}",
        )
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise FuseMissingError(
            "fusermount3 is missing, without which only root may mount",
            advice="install it with: apt-get install fuse3",
        )
    if allow_other and not user_allow_other(conf):
        raise FuseMissingError(
            f"only root may let other users in (allow_other), as {conf} stands",
            advice=f"add a line user_allow_other to {conf}, or say --no-allow-other",
        )


def user_allow_other(conf: Path = FUSE_CONF) -> bool:
    """Whether ordinary users may mount with allow_other (mount.fuse3(8))."""
    try:
        lines = conf.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def check_apart(store: Path, mountpoint: Path) -> None:
    """Raise :class:`MountpointError` when one of the two (both canonical) contains the other."""
    if store == mountpoint:
        problem = "is the store itself"
    elif store in mountpoint.parents:
        problem = f"lies inside the store {store}"
    elif mountpoint in store.parents:
        problem = f"contains the store {store}, which would vanish below its own mount"
    else:
        return
    raise MountpointError(
        f"{mountpoint}: the mountpoint {problem}",
        advice="choose directories of which neither contains the other",
    )


def check_free(store: Path, mountpoint: Path) -> bool:
    """Check that nothing is mounted on *mountpoint* (both canonical).

    Returns True when a dead daemon of the same store left its mount there, which may be taken
    away.  Raises :class:`StoreBusyError` when the store is served already, and
    :class:`MountpointError` when anything else is in the way.
    """
    held_by = lock.holder(store)
    if held_by is not None and not held_by.alive:
        # What a killed daemon had handed to its writer is being written to its end.
        lock.wait_until_free(store, LAST_WRITE_S)
        held_by = lock.holder(store)
    if held_by is not None:
        raise StoreBusyError(f"{store} is in use by {held_by}")
    mount = mount_at(mountpoint)
    if mount is None:
        return False
    if not is_stale(mount):
        what = f"store {mount.store}" if mount.store else f"{mount.fstype} of {mount.source}"
        raise MountpointError(
            f"{mountpoint} is busy: {what} is mounted there",
            advice=f"choose another directory, or: cafs umount {quote(str(mountpoint))}"
            if mount.store
            else f"choose another directory, or: umount {quote(str(mountpoint))}",
        )
    if mount.store != store:
        raise MountpointError(
            f"{mountpoint} was left behind by a dead daemon of another store, {mount.store}",
            advice=f"take it away with: cafs umount {quote(str(mountpoint))}",
        )
    return True


def check_directory(mountpoint: Path) -> Hidden | None:
    """Check that *mountpoint*, where nothing is mounted, is a directory that may be used.

    Returns what a mount would hide.  Raises :class:`MountpointError`.
    """
    try:
        with os.scandir(mountpoint) as entries:
            names = sorted(entry.name for entry in entries)
    except FileNotFoundError:
        raise MountpointError(
            f"{mountpoint}: there is no such directory",
            advice=f"make it: mkdir -p {quote(str(mountpoint))}",
        ) from None
    except NotADirectoryError:
        raise MountpointError(
            f"{mountpoint} is not a directory", advice="name a directory"
        ) from None
    except PermissionError:
        raise MountpointError(
            f"{mountpoint} may not be read by this user", advice="run as its owner, or as root"
        ) from None
    except OSError as error:
        raise MountpointError(
            f"{mountpoint}: {error.strerror}",
            advice=f"see what is there: stat {quote(str(mountpoint))}",
        ) from None
    # fusermount3 asks for it, and says less clearly what is missing.
    if os.geteuid() != 0 and not os.access(mountpoint, os.W_OK):
        raise MountpointError(
            f"{mountpoint} may not be written by this user, so it may not mount there",
            advice="run as its owner, or as root",
        )
    return Hidden(names[:NAMES_SHOWN], len(names)) if names else None
