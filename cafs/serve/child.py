"""A child process that ends with its parent, and can be waited for without a thread.

Invariant: a child never outlives this process for long, however this one ends: the kernel
sends it SIGTERM then.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import trio

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """One running process."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = subprocess.DEVNULL,
        stderr: int | None = None,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; raises :class:`OSError` when the program cannot be run."""
        parent = os.getpid()

        def before_exec() -> None:
            # The request is bound to the thread that forks, so this is never done in a worker.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        # What a terminal sends with Ctrl-C goes to the parent alone, which knows the order.
        self.process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            env=env,
            preexec_fn=before_exec,
            process_group=0,
        )
        self._pidfd = os.pidfd_open(self.process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def wait(self) -> int:
        """Its exit status, negative for a signal; for one task at a time."""
        while self.process.poll() is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        return self.process.returncode

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def send_group(self, number: signal.Signals) -> None:
        """Send a signal to what is left of it and of the processes that it started."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Kill it if it still runs, and let go of it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
