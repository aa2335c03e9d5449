"""How a mount ends: what is heard of signals, and what must be over before what.

To tell the kernel of a change is to wait for locks that others hold until their requests are
answered.  Once nobody answers any more such a wait has no end, and no signal ends it.  Invariant:
nothing is told, and nobody waits to tell, when the daemon waits for its tasks to end.
"""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import pyfuse3
import trio

from cafs.errors import CafsError
from cafs.mount import mountpoint as where
from cafs.mount.invalidate import Invalidator
from cafs.mount.kernel import CONNECTIONS
from cafs.mount.unmount import unmount

log = logging.getLogger(__name__)

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What tells a daemon to end; SIGHUP is the end of its terminal."""


class Signals:
    """What signals mean until the end of its block: the end of the mount, and nothing more.

    To be entered before trio runs, which has its own mind about SIGINT.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._armed = False

    def __enter__(self) -> Self:
        for number in ENDING:
            before = signal.getsignal(number)
            # It means something else to who started us: nohup(1), for one.
            if number != signal.SIGHUP or before == signal.SIG_DFL:
                self._before[number] = before
        return self

    def __exit__(self, *_: object) -> None:
        if self._armed:
            for number, before in self._before.items():
                signal.signal(number, before)

    def arm(self, serving: trio.CancelScope) -> None:
        """From now on the first one cancels *serving*."""
        token = trio.lowlevel.current_trio_token()

        def heard(number: signal.Signals) -> None:
            if serving.cancel_called:
                log.info("%s: it is ending already", number.name)
            else:
                log.info("%s: unmounting", number.name)
                serving.cancel()

        def handle(number: int, _frame: FrameType | None) -> None:
            try:
                token.run_sync_soon(heard, signal.Signals(number))
            except trio.RunFinishedError:
                # All is on disk.
                pass

        self._armed = True
        for number in self._before:
            signal.signal(number, handle)


async def end_in_order(invalidator: Invalidator) -> None:
    """Have the main loop end.  All that could tell the kernel anything has ended, or has to do
    without; what is being told yet comes to its end, because requests are still answered."""
    invalidator.end()
    await invalidator.rest()
    pyfuse3.terminate()


def end_of_answers(invalidator: Invalidator, store: Path, mountpoint: Path) -> None:
    """Nobody answers requests any more, for whatever reason."""
    invalidator.end()
    if not invalidator.telling:
        return
    # Whoever waits for an answer holds what is waited for: those requests have to end.
    mount = where.mount_at(mountpoint)
    if mount is None or mount.store != store:
        # The kernel ends them by itself, and the number may be another mount's by now.
        return
    log.warning("cutting the connection of %s: its requests are not answered any more", mountpoint)
    try:
        (CONNECTIONS / mount.device.split(":")[1] / "abort").write_text("1\n")
        return
    except OSError as error:
        log.info("%s: %s", error.filename, error.strerror)
    try:
        unmount(mountpoint, force=True)
    except CafsError as error:
        log.error("%s; what to do: cafs umount --force %s", error, mountpoint)
