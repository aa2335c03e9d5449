"""The log of requests, a line each, in the format that Cloud Foundry's nginx writes.

``timed_combined``: nginx's combined format, then the seconds that the request took, ``-`` and
``.`` (which in nginx are the upstream's time and the pipelining mark).  Invariant: a line is one
line whatever a client sends, and a log that cannot be written never fails a request.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

_LOOK_AFTER_S = 1.0
_UNSAFE = re.compile(rb'[\x00-\x1f"\\\x7f-\xff]')


class Line(NamedTuple):
    """What is logged of one request."""

    client: str
    user: bytes
    request: bytes
    """The request line."""
    status: int
    body_bytes: int
    referer: bytes
    agent: bytes
    took_s: float


def render(line: Line, at_s: float) -> bytes:
    """The line, with its newline."""
    local = time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(at_s))
    return b'%s - %s [%s] "%s" %d %d "%s" "%s" %.3f - .\n' % (
        line.client.encode(),
        _escaped(line.user),
        local.encode(),
        _escaped(line.request),
        line.status,
        line.body_bytes,
        _escaped(line.referer),
        _escaped(line.agent),
        line.took_s,
    )


def _escaped(text: bytes) -> bytes:
    return _UNSAFE.sub(lambda found: b"\\x%02X" % found[0][0], text) or b"-"


class AccessLog:
    """Appends to a file; goes on in a new one when the file is moved away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._inode = (0, 0)
        self._looked = 0.0

    def write(self, line: Line, at_s: float) -> None:
        """Log one request."""
        try:
            self._follow(at_s)
            os.write(self._fd, render(line, at_s))
        except OSError:
            # A full disk: the answer matters more, and the daemon's log says that it is full.
            pass

    def _follow(self, at_s: float) -> None:
        if self._fd >= 0 and 0 <= at_s - self._looked < _LOOK_AFTER_S:
            return
        self._looked = at_s
        try:
            status = os.stat(self._path)
            there = (status.st_dev, status.st_ino) == self._inode
        except FileNotFoundError:
            there = False
        if self._fd >= 0 and there:
            return
        self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o640)
        status = os.fstat(self._fd)
        self._inode = (status.st_dev, status.st_ino)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
