"""``STORE/lock``: at most one process has a store open for writing.

Owns that file.  Invariant: whoever writes to a store holds its flock; the kernel gives it up
when the last process that inherited it is gone, so a killed daemon leaves no lock behind and
a free lock means that a daemon has finished, its final commit included.  The content (one JSON
line with ``pid`` and ``mountpoint``) only serves messages.

Root takes it in a store of another user only to mount it: what a command made there would be
root's, and that user's daemon could no longer open it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Final, NamedTuple

from cafs import storefile
from cafs.errors import AccessError, StoreBusyError, from_os_error

NAME: Final = "lock"


class Holder(NamedTuple):
    """Who has a store open."""

    pid: int
    """0 when it did not say."""
    mountpoint: Path | None

    @property
    def alive(self) -> bool:
        """False when the process is dead and only its index writer holds on, to finish.

        True when the process did not say who it is.
        """
        if not self.pid:
            return True
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text(errors="replace")
        except FileNotFoundError:
            return False
        except OSError:
            return True
        # After the name, which may hold anything: the state, Z for one that nobody waited for.
        return status.rpartition(")")[2].split()[0] not in "ZX"

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "another process"
        return f"{who}, mounted on {self.mountpoint}" if self.mountpoint else who


class StoreLock:
    """The lock, held from construction until :meth:`release`."""

    def __init__(self, store: Path, mountpoint: Path | None = None) -> None:
        """Takes the lock without waiting.

        Raises :class:`StoreBusyError` naming the holder, :class:`AccessError` for root in a
        store of another user (but to mount it), or what the disk answered.
        """
        if mountpoint is None:
            _check_owner(store)
        path = store / NAME
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise from_os_error(error, f"open {path}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held_by = _parse(os.pread(self._fd, 65536, 0))
            os.close(self._fd)
            raise StoreBusyError(f"{store} is in use by {held_by}") from None
        self._say(mountpoint)

    def _say(self, mountpoint: Path | None) -> None:
        note = {"pid": os.getpid(), "mountpoint": str(mountpoint) if mountpoint else None}
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(note).encode() + b"\n", 0)
        except OSError:
            # A full or read-only disk: the lock holds all the same, only messages say less.
            pass

    @property
    def fd(self) -> int:
        """The descriptor that holds it, for a child process to inherit."""
        return self._fd

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def other_owner(store: Path) -> str | None:
    """Whose *store* is if this is root and it is another user's: a name, or ``#`` and a number."""
    if os.geteuid() != 0:
        return None
    try:
        uid = os.stat(store / storefile.NAME).st_uid
    except OSError:
        # There is none yet, or who reads it says what is wrong.
        return None
    if uid == 0:
        return None
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _check_owner(store: Path) -> None:
    owner = other_owner(store)
    if owner is not None:
        raise AccessError(
            f"{store} belongs to user {owner}, who could no longer open what root writes there; "
            "nothing was changed",
            advice=f"run it as that user: sudo -u {quote(owner)} cafs ...; or, if root is to have "
            f"the store from now on: chown -R root {quote(str(store))}",
        )


def holder(store: Path) -> Holder | None:
    """Who has *store* open for writing now; None when nobody has, or there is no store."""
    fd = _open_to_look(store)
    if fd is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(os.pread(fd, 65536, 0))
    finally:
        os.close(fd)
    return None


@contextmanager
def kept_free(store: Path) -> Iterator[bool]:
    """Whether nobody has *store* open for writing; within, nobody begins to.

    For a moment only: a daemon that starts meanwhile may be refused.
    """
    fd = _open_to_look(store)
    try:
        if fd is not None:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        if fd is not None:
            os.close(fd)


def wait_until_free(store: Path, timeout_s: float) -> bool:
    """Wait until nobody has *store* open for writing; False when that took too long.

    The wait is the kernel's, in a thread of its own, because flock(2) knows no timeout; after a
    timeout that thread lives on until the lock is free or the process ends.
    """
    fd = _open_to_look(store)
    if fd is None:
        return True

    def wait() -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    thread = threading.Thread(target=wait, name="wait-for-lock", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return not thread.is_alive()


def _open_to_look(store: Path) -> int | None:
    try:
        return os.open(store / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os_error(error, f"open {store / NAME}") from error


def _parse(content: bytes) -> Holder:
    try:
        note = json.loads(content)
        where = note.get("mountpoint")
        return Holder(int(note["pid"]), Path(where) if where else None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Holder(0, None)
