"""Taking a mount away, and saying who keeps it busy.

Invariant: without ``lazy`` or ``force`` nothing happens to a mount that somebody uses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from cafs.errors import MountError, MountpointError
from cafs.mount.mountpoint import mounts

# umount2(2)
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


class User(NamedTuple):
    """A process that keeps a mount busy, or a mount on top of it."""

    pid: int
    """0 for a mount."""
    name: str
    how: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}): {self.how}" if self.pid else f"{self.how}"


def unmount(mountpoint: Path, *, lazy: bool = False, force: bool = False) -> None:
    """Take the topmost mount on *mountpoint* (canonical) away.

    *lazy*: it vanishes from the tree now, and ends when its last user is gone.  *force*: the
    daemon's connection is cut first, so that a daemon that hangs cannot hold it; what was not
    committed is lost.  Raises :class:`MountpointError` naming the users when it is busy.
    """
    flags = _UMOUNT_NOFOLLOW
    if force:
        # Once the connection is cut, users of the dead mount can only let go of it.
        flags |= _MNT_FORCE | _MNT_DETACH
    if lazy:
        flags |= _MNT_DETACH
    number = _umount2(mountpoint, flags) if os.geteuid() == 0 else _fusermount(mountpoint, lazy)
    if number == 0:
        return
    if number == errno.EBUSY:
        found = users(mountpoint)
        text = "; ".join(map(str, found[:5])) or "nobody that this user may see"
        if len(found) > 5:
            text += f" and {len(found) - 5} more"
        raise MountpointError(
            f"{mountpoint} is in use by {text}",
            advice="stop them, or let them finish with: cafs umount --lazy",
        )
    if number in (errno.EINVAL, errno.ENOENT):
        raise MountpointError(f"{mountpoint} is not a mountpoint", advice="see: cafs status")
    if number == errno.EPERM:
        raise MountError(
            f"{mountpoint} may not be unmounted by this user",
            advice="run as the user that mounted it, or as root",
        )
    raise MountError(f"unmount {mountpoint}: {os.strerror(number)}")


def _umount2(mountpoint: Path, flags: int) -> int:
    # The call itself, not umount(8): its errno says more than a translated message.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return 0
    return ctypes.get_errno()


def _fusermount(mountpoint: Path, lazy: bool) -> int:
    arguments = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}, check=False
        )
    except FileNotFoundError:
        raise MountError(
            "fusermount3 is missing, without which only root may unmount",
            advice="install it with: apt-get install fuse3",
        ) from None
    if done.returncode == 0:
        return 0
    if "busy" in done.stderr:
        return errno.EBUSY
    if "not found in" in done.stderr or "Invalid argument" in done.stderr:
        return errno.EINVAL
    if "not permitted" in done.stderr or "not owned" in done.stderr:
        return errno.EPERM
    raise MountError(f"unmount {mountpoint}: {done.stderr.strip() or 'fusermount3 failed'}")


def users(mountpoint: Path) -> list[User]:
    """Who uses what lies below *mountpoint* (canonical), as far as this user may see."""
    found = [
        User(0, "", f"{mount.source} mounted on {mount.path}")
        for mount in mounts()
        if mountpoint in mount.path.parents
    ]
    own = os.getpid()
    for entry in Path("/proc").iterdir():
        # This process may stand in it, too, but is about to end.
        if entry.name.isdigit() and int(entry.name) != own:
            how = _use(entry, mountpoint)
            if how is not None:
                found.append(User(int(entry.name), _name(entry), how))
    return found


def _use(process: Path, mountpoint: Path) -> str | None:
    for link, words in (("cwd", "works in"), ("root", "has as its root")):
        target = _target(process / link)
        if _below(target, mountpoint):
            return f"{words} {target}"
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        descriptors = []
    for descriptor in descriptors:
        target = _target(descriptor)
        if _below(target, mountpoint):
            return f"has {target} open"
    # A mapping keeps a file in use after its descriptor was closed.
    try:
        maps = os.fsdecode((process / "maps").read_bytes())
    except OSError:
        return None
    for line in maps.splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and _below(parts[5], mountpoint):
            return f"has {parts[5]} mapped"
    return None


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _below(target: str, mountpoint: Path) -> bool:
    text = str(mountpoint)
    return target == text or target.startswith(text.rstrip("/") + "/")


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "a process that has just ended"
