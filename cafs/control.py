"""The client's end of a daemon's control socket, ``STORE/control.sock``.

One JSON object per line, each way.  The client sends ``{"command": ..., argument: ...}``; the
daemon answers with any number of ``{"progress": {...}}`` lines and then one line that has
``"ok"``: true with the answer's fields, or false with ``error``, ``message`` and ``advice``.

Invariant: every failure to talk is a :class:`DaemonError`, and an error of the daemon arrives
as the class that it was raised as.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from cafs import errors
from cafs.errors import CafsError, DaemonAbsentError, DaemonError, FsError

NAME: Final = "control.sock"

TIMEOUT_S: Final = 30.0
"""How long a daemon may stay silent; progress lines count as a sign of life."""

AWAIT_END: Final = "await_end"
"""The command that is answered when the store was let go; until then one line says that it will
be."""

MAX_LINE_BYTES: Final = 64 << 20

OnProgress = Callable[[Mapping[str, Any]], None]


def call(
    store: Path,
    command: str,
    *,
    timeout_s: float = TIMEOUT_S,
    on_progress: OnProgress | None = None,
    **args: object,
) -> dict[str, Any]:
    """Ask the daemon that serves *store*, and return the fields of its answer.  Blocks.

    Raises :class:`DaemonAbsentError` when nobody listens, another :class:`DaemonError` when the
    answer is late or makes no sense, else the error that the daemon reports.
    """
    request = json.dumps({"command": command, **args}).encode() + b"\n"
    with _connect(store, timeout_s) as connection, _faults(store, command, timeout_s):
        connection.sendall(request)
        lines = _Lines(connection)
        while True:
            answer = _decode(store, lines.next(timeout_s))
            progress = answer.get("progress")
            if "ok" not in answer and isinstance(progress, dict):
                if on_progress is not None:
                    on_progress(progress)
                continue
            break
    if answer.get("ok") is not True:
        raise error_from(answer)
    del answer["ok"]
    return answer


class Ending:
    """A daemon that was asked how it will end, before its mount is taken away.

    Whoever only sees that it has ended cannot know whether its final commit was made.
    """

    def __init__(self, store: Path, timeout_s: float) -> None:
        """Ask; when this returns the daemon knows whom to tell.  Raises as :func:`call`."""
        self._store = store
        self._connection = _connect(store, timeout_s)
        self._lines = _Lines(self._connection)
        try:
            with _faults(store, AWAIT_END, timeout_s):
                self._connection.sendall(json.dumps({"command": AWAIT_END}).encode() + b"\n")
                answer = _decode(store, self._lines.next(timeout_s))
            if "ok" in answer:
                raise error_from(answer)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def wait(self, timeout_s: float) -> bool:
        """Whether the daemon has let go of the store by then, with everything on disk.

        Raises the error of its final commit, and :class:`DaemonError` if it died without a word.
        """
        try:
            answer = _decode(self._store, self._lines.next(timeout_s))
        except TimeoutError:
            return False
        except OSError:
            raise DaemonError(
                f"the daemon of {self._store} died before its final commit was over: "
                "what was changed since the commit before may be lost",
                advice="mount the store again: what programs had synced is in it",
            ) from None
        if answer.get("ok") is not True:
            raise error_from(answer)
        return True


@contextmanager
def _faults(store: Path, command: str, timeout_s: float) -> Iterator[None]:
    """What can go wrong while one talks, as a :class:`DaemonError`."""
    try:
        yield
    except TimeoutError:
        raise DaemonError(
            f"the daemon of {store} did not answer {command!r} within {timeout_s:g} s"
        ) from None
    except OSError as error:
        raise DaemonError(
            f"the daemon of {store} hung up on {command!r}: {error.strerror or error}"
        ) from None


def error_fields(error: CafsError) -> dict[str, Any]:
    """*error* as fields of a JSON object: what :func:`error_from` takes."""
    found: dict[str, Any] = {
        "error": type(error).__name__,
        "message": str(error),
        "advice": error.advice,
        "exit_code": error.meaning.exit_code,
    }
    if isinstance(error, FsError):
        found["errno"] = error.errno
    return found


def error_from(answer: Mapping[str, Any]) -> CafsError:
    """The error that :func:`error_fields` described, as its own class."""
    message = str(answer.get("message") or "the daemon reports an error and does not say which")
    if isinstance(answer.get("errno"), int):
        return FsError(answer["errno"], message)
    cls = getattr(errors, str(answer.get("error")), None)
    if not (isinstance(cls, type) and issubclass(cls, CafsError)) or cls is FsError:
        cls = DaemonError
    advice = answer.get("advice")
    return cls(message, advice=advice if isinstance(advice, str) else None)


def _connect(store: Path, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        directory = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # unix(7) limits an address to 108 bytes, and a store may lie deeper than that.
            connection.connect(f"/proc/self/fd/{directory}/{NAME}")
        finally:
            os.close(directory)
    except OSError as error:
        connection.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            raise DaemonAbsentError(f"no daemon serves {store}") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise DaemonError(
                f"the daemon of {store} may not be asked by this user",
                advice="run as the user that the daemon runs as, or as root",
            ) from None
        raise DaemonError(
            f"the daemon of {store} cannot be reached: {error.strerror or error}"
        ) from None
    return connection


class _Lines:
    """Reads whole lines, each within the timeout however slowly its bytes arrive."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = bytearray()

    def next(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        searched = 0
        while (end := self._rest.find(b"\n", searched)) < 0:
            searched = len(self._rest)
            if searched > MAX_LINE_BYTES:
                raise OSError(errno.EMSGSIZE, "a line of the answer is too long")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            piece = self._connection.recv(1 << 16)
            if not piece:
                raise OSError(errno.ECONNRESET, "no complete answer came")
            self._rest += piece
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line


def _decode(store: Path, line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise DaemonError(f"the daemon of {store} answered with something that is no JSON object")
    return answer
