"""The directory of nginx's files: whose it is, and what a `cafs serve` that was killed left in it.

A `cafs serve` holds the flock of ``serve.lock`` in it for as long as it runs; the kernel gives
that up however it ends.  Invariant: only a directory that has such a file, which nobody holds,
is cleared: one that was written by hand or by ``cafs nginx-config --write`` has none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from cafs import storefile
from cafs.errors import AccessError, CafsError, StoreBusyError, from_os_error

LOCK: Final = "serve.lock"
CONFIG: Final = "nginx.conf"
SECRET_INCLUDE: Final = "link-secret.conf"
PID_FILE: Final = "nginx.pid"
TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
"""Directories of nginx for what it writes to disk meanwhile."""


def default(store: Path) -> Path:
    """Where nginx's files lie when the settings do not say: it must outlive a read-only disk."""
    name = f"cafs-{storefile.read(store).id.hex()[:12]}"
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run", name)
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own, name) if own else Path(tempfile.gettempdir(), f"{name}-{os.geteuid()}")


def make(run_dir: Path) -> None:
    """Make the directory if it is not there; raises :class:`AccessError` if another's is."""
    # Workers under another user have to get through to their temporary files.
    run_dir.mkdir(mode=0o711, exist_ok=True)
    if run_dir.stat().st_uid != os.geteuid():
        raise AccessError(
            f"{run_dir} belongs to another user",
            advice="remove it, or name another serve.run_dir",
        )


def clear(run_dir: Path) -> None:
    """Remove nginx's files and, if nothing else is in it, the directory.

    A copy of the links' secret is among them.
    """
    for name in (CONFIG, SECRET_INCLUDE, PID_FILE):
        (run_dir / name).unlink(missing_ok=True)
        # What a kill left of Disk.write_file().
        (run_dir / f"{name}.new").unlink(missing_ok=True)
    for name in TEMPORARY:
        shutil.rmtree(run_dir / name, ignore_errors=True)
    _remove_if_empty(run_dir)


def clear_dead(run_dir: Path) -> bool:
    """Clear what a `cafs serve` left there that was killed; whether there was any.

    What may not be cleared by this user, or is in use, stays.
    """
    if not (run_dir / LOCK).exists():
        return False
    try:
        claim = Claim(run_dir)
    except CafsError:
        return False
    try:
        clear(run_dir)
    except OSError:
        return False
    finally:
        claim.release()
    return True


class Claim:
    """The directory is this process's, from construction until :meth:`release`."""

    def __init__(self, run_dir: Path) -> None:
        """Make the directory and take it.

        Raises :class:`StoreBusyError` when another `cafs serve` has it, :class:`AccessError`
        when it is another user's, or what the disk says.
        """
        self._run_dir = run_dir
        try:
            make(run_dir)
            self._fd = _take(run_dir / LOCK)
        except BlockingIOError:
            raise StoreBusyError(
                f"{run_dir} is in use by another cafs serve",
                advice="end that one, or name another serve.run_dir",
            ) from None
        except OSError as error:
            raise from_os_error(error, f"take the directory {run_dir}") from error

    def release(self) -> None:
        """Give it up, and remove it if nothing is left in it."""
        # The name goes before the lock: who takes the lock looks whether it still has the name.
        (self._run_dir / LOCK).unlink(missing_ok=True)
        os.close(self._fd)
        _remove_if_empty(self._run_dir)


def _take(path: Path) -> int:
    """The file's lock; the descriptor that holds it.  Raises BlockingIOError."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BaseException:
            os.close(fd)
            raise
        # Whoever had it has just removed it.
        os.close(fd)


def _remove_if_empty(run_dir: Path) -> None:
    try:
        run_dir.rmdir()
    except OSError:
        # It has something else in it, or belongs where it is.
        pass
