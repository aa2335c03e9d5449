"""Taking one mount away for ``cafs umount``, and hearing from the daemon how it ended.

Invariant: that everything is on disk is said only if the daemon said so after its final commit.
That its lock is free means no more than that it has ended.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Final

from cafs import control, lock
from cafs.cli.output import note
from cafs.cli.store_commands import LOG_NAME
from cafs.errors import CafsError, DaemonAbsentError, DaemonError, UsageError, told_as
from cafs.mount.mountpoint import LAST_WRITE_S, Mount
from cafs.mount.unmount import unmount
from cafs.units import duration_text

PATIENCE_S: Final = 3.0
"""Nothing is said about a wait that is shorter."""
ASK_S: Final = 30.0
"""A daemon that takes longer to take notice is taken for one that hangs."""
ASK_BY_FORCE_S: Final = 1.0


def take_away(mount: Mount, store: Path, *, force: bool, timeout_s: float) -> bool:
    """Unmount and wait until the daemon has ended; whether it said that everything is on disk.

    Only with *force* may it have said nothing.  Raises :class:`MountpointError` when it is busy
    and :class:`DaemonError` when it hangs, and nothing was changed; the error of the final commit,
    and :class:`DaemonError` when the daemon died before that or takes too long.
    """
    ending = _ask(mount, store, force=force, timeout_s=timeout_s)
    with ending or nullcontext():
        unmount(mount.path, force=force)
        try:
            said = await_end(store, timeout_s, ending)
        except CafsError as error:
            raise told_as(error, f"{mount.path} is unmounted, but {error}") from None
    if not said and not force:
        raise DaemonError(
            f"{mount.path} is unmounted, but the daemon of {store} did not say whether everything "
            "is on disk",
            advice=f"see {store / LOG_NAME}; what programs had synced is on disk",
        )
    return said


def await_end(store: Path, timeout_s: float, ending: control.Ending | None = None) -> bool:
    """Wait for the daemon's end; whether it said, by *ending*, that everything is on disk.

    Raises as :func:`take_away`.
    """
    wait = ending.wait if ending is not None else partial(lock.wait_until_free, store)
    patience_s = min(PATIENCE_S, timeout_s)
    try:
        if wait(patience_s):
            return ending is not None
        note(
            f"waiting for the final commit of {store} ({lock.holder(store) or 'it is about over'})"
        )
        if wait(timeout_s - patience_s):
            return ending is not None
    except DaemonError:
        # What a daemon that died had handed to its writer is being written to its end.
        lock.wait_until_free(store, LAST_WRITE_S)
        raise
    raise DaemonError(
        f"{store} is still in use by {lock.holder(store) or 'a daemon'} "
        f"after {duration_text(timeout_s)}",
        advice=f"see {store / LOG_NAME}; do not kill the daemon while it commits",
    )


def _ask(mount: Mount, store: Path, *, force: bool, timeout_s: float) -> control.Ending | None:
    try:
        return control.Ending(store, min(timeout_s, ASK_BY_FORCE_S if force else ASK_S))
    except (DaemonAbsentError, UsageError):
        # It has no socket, or is of an older cafs: it can be unmounted, but says nothing.
        return None
    except DaemonError as error:
        if force:
            return None
        raise DaemonError(
            f"{error}; {mount.path} stays mounted",
            advice=f"see {store / LOG_NAME}; to cut off a daemon that hangs: "
            f"cafs umount --force {quote(str(mount.path))}",
        ) from None
