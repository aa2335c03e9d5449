"""Running a mount in the background, and hearing whether it came up.

The command forks a daemon and waits at a pipe.  The daemon writes one JSON line: its pid when
it starts, and then that the mount answers, or the error that kept it from that.  Invariant: the
command ends with success only after the mount answers, and with the daemon's own error else.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from cafs import log
from cafs.cli.output import note, warn
from cafs.control import error_fields, error_from
from cafs.errors import CafsError, DaemonError
from cafs.logfile import to_file

_logger = logging.getLogger(__name__)

Serve = Callable[[Callable[[], None]], None]
"""Mounts, calls its argument when the mount answers, and returns when it is unmounted."""


def start(serve: Serve, log_file: Path, level: str) -> int:
    """Run *serve* in a daemon of its own; returns its pid when the mount answers.

    Raises the error that the daemon had, or :class:`DaemonError` when it died without a word.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    # Ctrl-C waits until it is known whom to stop.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.close(reader)
        _become_daemon(serve, writer, log_file, level)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            return _await(pipe, log_file)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.waitpid(child, 0)


def _await(lines: Any, log_file: Path) -> int:
    pid = 0
    try:
        for message in _messages(lines):
            if "pid" in message:
                pid = int(message["pid"])
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            elif "note" in message:
                warn(str(message["note"]))
            elif message.get("ready"):
                return pid
            else:
                raise error_from(message)
    except KeyboardInterrupt:
        if pid:
            note(f"stopping the daemon, process {pid}")
            os.kill(pid, signal.SIGTERM)
        raise
    raise DaemonError("the daemon ended before the mount was there", advice=f"see {log_file}")


def _messages(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        yield json.loads(line)


def _become_daemon(serve: Serve, writer: int, log_file: Path, level: str) -> NoReturn:
    # Never return into the caller's stack: this is a copy of the command.
    code = 1
    try:
        os.setsid()
        # The second fork leaves a process that can never get a terminal (setsid(2)), and that
        # init waits for.
        if os.fork() == 0:
            code = _run(serve, writer, log_file, level)
        else:
            code = 0
    finally:
        os._exit(code)


def _close_inherited() -> None:
    """Let go of what the caller had open: a lock, a pipe whose end somebody waits for."""
    for name in os.listdir("/proc/self/fd"):
        try:
            # What this program opened itself is not for a program to inherit.
            if int(name) > 2 and os.get_inheritable(int(name)):
                os.close(int(name))
        except OSError:
            # That of the list, which is closed by now.
            pass


def _run(serve: Serve, writer: int, log_file: Path, level: str) -> int:
    is_ready = False

    def tell(**message: object) -> None:
        if is_ready:
            # The command has gone; the log has it.
            return
        try:
            os.write(writer, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            # The command was killed while it waited; the mount goes on without it.
            pass

    def ready() -> None:
        nonlocal is_ready
        tell(ready=True)
        is_ready = True
        os.close(writer)

    # A signal that the command had blocked or ignored must not stay so for years.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    tell(pid=os.getpid())
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    _close_inherited()
    try:
        to_file(level, log_file)
    except OSError as error:
        tell(note=f"{log_file} cannot be written ({error.strerror}): this daemon does not log")
        logging.getLogger().addHandler(logging.NullHandler())
    faulthandler.enable()
    try:
        serve(ready)
    except CafsError as error:
        _logger.error("%s", error, extra=log.fields(advice=error.advice))
        tell(**error_fields(error))
        return error.meaning.exit_code
    except BaseException:
        name = log.correlation_id()
        _logger.exception("the daemon ended by a defect", extra=log.fields(id=name))
        message = f"the daemon ended by a defect of cafs, id {name}"
        tell(**error_fields(DaemonError(message, advice=f"see {log_file}")))
        return 70
    finally:
        logging.shutdown()
    return 0
