"""One nginx: tested, started, reloaded and stopped.

Owns the process and its pid file.  Invariant: a running nginx is never given a configuration
that ``nginx -t`` refuses, and what it says goes to our log, a line for a line.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from pathlib import Path
from shlex import quote
from typing import Final

import trio

from cafs.durable import Disk
from cafs.errors import AddressError, CafsError, NginxError, from_os_error
from cafs.serve.child import Child, how_it_ended
from cafs.serve.plan import Plan
from cafs.serve.rundir import PID_FILE

START_PATIENCE_S: Final = 20.0
RELOAD_PATIENCE_S: Final = 20.0
"""How long nginx may take to follow a configuration; for a port that is taken it tries 2.5 s."""
GRACE_S: Final = 20.0
"""How long running requests may take to finish when nginx is told to go."""

_POLL_S = 0.02
_TAKEN = "Address already in use"
_LINE = re.compile(r"(?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d |nginx: )\[(\w+)\] (.*)")
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warn": logging.WARNING,
}
_PROCESS = re.compile(r"^\d+#\d+: ")
_logger = logging.getLogger(__name__)


def test(plan: Plan) -> None:
    """Ask nginx whether it takes the plan's files; raises :class:`NginxError` if not."""
    try:
        done = subprocess.run(
            [*_command(plan), "-t"], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise NginxError(f"{plan.nginx.program}: cannot be run: {error.strerror}") from None
    if done.returncode == 0:
        return
    said = [match[2] for match in map(_LINE.match, done.stderr.splitlines()) if match]
    reason = _PROCESS.sub("", said[-1]) if said else done.stderr.strip()[-300:]
    what = f"nginx refuses its configuration: {_with_line(plan, reason)}"
    advice = "correct the setting that this comes from; cafs nginx-config shows all of it"
    # Built for another version or with other options: nginx has several ways to say so.
    if plan.module is not None and f'"{plan.module}"' in reason:
        what = f"{plan.module} was built for another nginx than {plan.nginx.version}: "
        what += _with_line(plan, reason)
        program, directory = quote(str(plan.nginx.program)), quote(str(plan.module.parent))
        advice = f"build it again: native/nginx/build.sh --nginx {program} --install {directory}"
    raise NginxError(what, advice=advice)


def _with_line(plan: Plan, reason: str) -> str:
    """*reason* with the line that nginx means, instead of where it stood: that file goes away."""
    what, _, number = reason.rpartition(f" in {plan.config}:")
    lines = plan.text.splitlines()
    if not what or not number.isdecimal() or int(number) > len(lines):
        return reason
    return f'{what} in the line "{lines[int(number) - 1].strip()}"'


def replace(plan: Plan) -> None:
    """Put the plan's files in the place of those that are there, if nginx takes them.

    Raises :class:`NginxError` when it does not, or what the disk says; then the old ones are
    there again.
    """
    try:
        kept = {
            path: path.read_bytes()
            for path in (plan.config, plan.include)
            if path is not None and path.exists()
        }
    except OSError as error:
        raise from_os_error(error, f"read nginx's configuration in {plan.run_dir}") from error
    try:
        plan.write()
        test(plan)
    except CafsError:
        # In one step each: what is there is what nginx is started with again.
        for path, content in kept.items():
            Disk().write_file(path, content, keep_rights=True)
        raise


def _command(plan: Plan) -> list[str]:
    return [
        *(str(plan.nginx.program), "-p", str(plan.run_dir), "-e", "stderr"),
        *("-c", str(plan.config)),
    ]


class NginxProcess:
    """A running nginx."""

    def __init__(self, plan: Plan) -> None:
        """Start it; :meth:`ready` waits until it listens.  Raises :class:`NginxError`."""
        self._pid_file = plan.run_dir / PID_FILE
        self._pid_file.unlink(missing_ok=True)
        self._complaint = ""
        self._given_up = False
        """Whether the master has said that it does not follow a configuration."""
        reader, writer = os.pipe()
        try:
            self.child = Child([*_command(plan), "-g", "daemon off;"], stderr=writer)
        except OSError as error:
            os.close(reader)
            raise NginxError(f"{plan.nginx.program}: cannot be run: {error.strerror}") from None
        finally:
            os.close(writer)
        self._output = trio.lowlevel.FdStream(reader)

    async def ready(self) -> None:
        """Return when it listens.

        Raises :class:`NginxError` when it ends instead, :class:`AddressError` if a port is taken.
        """
        with trio.move_on_after(START_PATIENCE_S):
            # It writes this file when its sockets are open.
            while not (self._pid_file.exists() and self._pid_file.stat().st_size):
                with trio.move_on_after(_POLL_S):
                    status = await self.child.wait()
                    raise await self._failed(how_it_ended(status))
            return
        raise NginxError(f"nginx did not listen within {START_PATIENCE_S:g} s")

    async def _failed(self, how: str) -> CafsError:
        # What it said may lie in the pipe still, and the task that logs it may be waiting.
        with trio.move_on_after(1.0):
            while not self._complaint:
                await trio.sleep(_POLL_S)
        return self._fault(how)

    def _fault(self, what: str) -> CafsError:
        text = f"nginx {what}: {self._complaint or 'it did not say why'}"
        if _TAKEN in text:
            return AddressError(
                text,
                advice="see who listens there: ss -ltnp; or choose other ports: "
                "serve.internal_port, serve.public_tls_port, serve.public_port",
            )
        return NginxError(text)

    async def log_output(self) -> None:
        """Log what it says until it and its workers are gone."""
        rest = b""
        try:
            async for data in self._output:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._log(line.decode(errors="replace"))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return

    def _log(self, line: str) -> None:
        match = _LINE.match(line)
        level = _LEVELS.get(match[1], logging.ERROR) if match else logging.WARNING
        text = match[2] if match else line
        if match and match[1] == "emerg" and text.startswith(f"{self.child.pid}#"):
            # Of a port that is taken it says so after each try, and at last that it gives up.
            self._given_up = self._given_up or _TAKEN not in text
        if level >= logging.ERROR and not self._complaint:
            # The first: what follows is only that it gives up.
            self._complaint = _PROCESS.sub("", text)
        _logger.log(level, "nginx: %s", text)

    async def reload(self) -> None:
        """Let it read its configuration again; running requests finish with the old one.

        Returns when it has: new workers answer.  Raises :class:`AddressError` or
        :class:`NginxError` when it goes on with the old one, or has ended.
        """
        before = self._workers()
        self._complaint, self._given_up = "", False
        self.child.send(signal.SIGHUP)
        with trio.move_on_after(RELOAD_PATIENCE_S):
            while self._workers() <= before:
                if self._given_up:
                    raise self._fault("does not follow its configuration")
                # Its end is waited for already, by who starts it again.
                status = self.child.process.poll()
                if status is not None:
                    raise await self._failed(how_it_ended(status))
                await trio.sleep(_POLL_S)
            return
        raise NginxError(f"nginx did not follow its configuration within {RELOAD_PATIENCE_S:g} s")

    def _workers(self) -> set[int]:
        pid = self.child.pid
        try:
            return {
                int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            }
        except OSError:
            # It has just ended.
            return set()

    def reopen_logs(self) -> None:
        """Let it open its log files again, after somebody moved them."""
        self.child.send(signal.SIGUSR1)

    async def stop(self) -> None:
        """Let running requests finish, for :data:`GRACE_S`; then end it."""
        for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL):
            self.child.send(number)
            with trio.move_on_after(GRACE_S):
                await self.child.wait()
                return
            _logger.warning("nginx did not end on %s in %g s", number.name, GRACE_S)

    async def close(self) -> None:
        """End it at once if it still runs, and let go of it.

        Workers that a dead master left behind finish their requests and listen no more.
        """
        if self.child.process.poll() is None:
            self.child.send_group(signal.SIGKILL)
        else:
            self.child.send_group(signal.SIGQUIT)
        self.child.close()
        await self._output.aclose()
