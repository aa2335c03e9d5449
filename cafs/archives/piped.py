"""A program that is fed through a pipe and answers through another, both at the same time.

Owns the process, its three pipes and its end.  Invariant: no call takes longer than what it
was given to do allows, and no more bytes come in than were allowed, whatever the program does:
one that hangs, dies, stops reading, closes its output or writes forever is killed, and the
caller gets an :class:`EngineError`.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Final

from cafs.archives.program import Program
from cafs.errors import EngineError

PATIENCE_S: Final = 30.0
"""How long a program may do nothing, apart from what its input takes at the slowest rate."""

SLOWEST_RATE: Final = 2 << 10
"""Bytes a second of input.  What is at nice 19 gets 1.5 percent of a core that something else
always wants, and so gzip a few tens of kilobytes."""

SESSION_NICENESS: Final = 10
"""A tenth of a core that other sessions always want: archives are taken apart there, too."""

_PIPE_SIZE: Final = 256 << 10
"""Four times what Linux gives without being asked: fewer changes between the two processes."""
_READ_SIZE: Final = 256 << 10
_STDERR_MAX: Final = 2000
_CPU_CLOCK: Final = 2
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": os.defpath}
"""Nothing of ours: the variable GZIP, say, would change what gzip makes."""


class Piped:
    """A running program.  One thread at a time; close() has to be called."""

    def __init__(
        self,
        program: Program,
        arguments: Sequence[str],
        *,
        niceness: int = 0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Start it with *arguments*, the first of which is its name for itself.

        Raises :class:`EngineError`.
        """
        self.allowed = 0
        """How many bytes of output may still come; the caller raises it with what it feeds."""
        self._program = program
        self._patience_s = patience_s
        self._process = _start(program, arguments)
        process = self._process
        assert process.stdin and process.stdout and process.stderr
        self._stdin: int | None = process.stdin.fileno()
        self._stdout: int | None = process.stdout.fileno()
        self._stderr: int | None = process.stderr.fileno()
        self._said = b""
        self._cpu_s = 0.0
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)
        for fd in (self._stdin, self._stdout):
            try:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            except OSError:
                pass  # This user has as many pages in pipes as they may have: slower, no worse.
        self._niceness = niceness
        if niceness:
            try:
                os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
            except OSError:
                pass  # It has ended already, and will be found so.
            self._stand_back()

    def feed(self, *buffers: bytes | memoryview) -> list[bytes]:
        """Write all of the buffers; what came out in the meantime.  Raises EngineError."""
        if self._niceness:
            self._stand_back()
        size = sum(map(len, buffers))
        deadline = self._deadline(size)
        got: list[bytes] = []
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                if self._stdin is None:
                    raise self._failure("was fed after its end")
                try:
                    view = view[os.write(self._stdin, view) :]
                except BlockingIOError:
                    self._wait(got, deadline, self._stdin)
                except OSError as error:
                    raise self._failure(f"takes no more input ({error.strerror})") from error
        self._read(got)
        return got

    def finish(self) -> list[bytes]:
        """Say that there is no more input; the rest of the output.

        Raises :class:`EngineError` when it does not end well: with status 0, in time.
        """
        # What it has not read yet is still in the pipe.
        deadline = self._deadline(_PIPE_SIZE)
        self._close_stdin()
        got: list[bytes] = []
        while self._stdout is not None:
            self._wait(got, deadline, None)
        self.cpu_s()
        try:
            status = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._failure("does not end") from None
        if status:
            raise self._failure(_status_text(status))
        return got

    def cpu_s(self) -> float:
        """Seconds of a processor that it has taken so far, or had when that was last known."""
        if self._process.returncode is None:
            try:
                # The clock of a process; Python has no other name for it (clock_getcpuclockid(3)).
                self._cpu_s = time.clock_gettime(~self._process.pid << 3 | _CPU_CLOCK)
            except OSError:
                pass  # A kernel that does not say.
        return self._cpu_s

    def close(self) -> None:
        """Kill what still runs, and leave nothing behind."""
        self._stdin = self._stdout = self._stderr = None
        process = self._process
        if process.returncode is None:
            try:
                # A group of its own: whatever the program has started ends with it.
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()

    # -- inside

    def _stand_back(self) -> None:
        """Make the program's session nice, too.

        Linux may share the processors between sessions first (sched(7), autogroup), and then a
        process is nice only to those in its own, which has nobody else here.
        """
        try:
            with open(f"/proc/{self._process.pid}/autogroup", "wb", buffering=0) as file:
                file.write(b"%d" % min(self._niceness, SESSION_NICENESS))
        except BlockingIOError:
            return  # Ten times a second are allowed to all who are not root: the next time.
        except OSError:
            pass  # There is no such thing, or the program has ended.
        self._niceness = 0

    def _deadline(self, size: int) -> float:
        return time.monotonic() + self._patience_s * (1 + size / (SLOWEST_RATE * PATIENCE_S))

    def _wait(self, got: list[bytes], deadline: float, writing: int | None) -> None:
        """Until something can be read, which is done, or *writing* can be written to."""
        poll = select.poll()
        if writing is not None:
            poll.register(writing, select.POLLOUT)
        for fd in (self._stdout, self._stderr):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise self._failure("hangs")
        self._read(got)

    def _read(self, got: list[bytes]) -> None:
        """All that has come by now."""
        # Once and not to the end, which one that complains without end does not have.
        self._listen()
        while self._stdout is not None:
            some = _read_some(self._stdout)
            if some is None:
                return
            if not some:
                self._stdout = None
                return
            self.allowed -= len(some)
            if self.allowed < 0:
                raise self._failure("writes more than can come of its input")
            got.append(some)

    def _listen(self) -> None:
        """What it says on stderr; the last of it is kept."""
        some = _read_some(self._stderr) if self._stderr is not None else None
        if some is not None:
            self._said = (self._said + some)[-_STDERR_MAX:]
            if not some:
                self._stderr = None

    def _close_stdin(self) -> None:
        self._stdin = None
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass  # Nothing is buffered; the descriptor is gone either way.

    def _failure(self, what: str) -> EngineError:
        self._listen()
        said = self._said.decode(errors="replace").strip()
        return EngineError(f"{self._program.path} {what}{': ' + said if said else ''}")


def _start(program: Program, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    with program.image() as fd:
        try:
            # A session of its own: a Ctrl-C in the daemon's terminal is the daemon's.
            return subprocess.Popen(
                arguments,
                executable=f"/proc/self/fd/{fd}",
                pass_fds=[fd],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise EngineError(f"{program.path}: cannot be run: {error}") from error


def _read_some(fd: int) -> bytes | None:
    """What is there: b"" at the end, None when there is nothing yet."""
    try:
        return os.read(fd, _READ_SIZE)
    except BlockingIOError:
        return None


def _status_text(status: int) -> str:
    if status < 0:
        return f"was killed by signal {-status}"
    return f"ended with status {status}"
