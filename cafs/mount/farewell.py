"""Telling those who unmount how it ended: the final commit was made, or what was lost.

The control socket is served as long as the mount is there, and the final commit comes after
that: so the connections of those who want to know are kept here, beyond the event loop.
Invariant: "ok" is said only when the store was let go with everything on disk.  A daemon that
dies says nothing, and a connection that ends without a word is no good news.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Self

import trio

from cafs.control import error_fields
from cafs.errors import CafsError, DaemonError

log = logging.getLogger(__name__)


class Farewell:
    """Those who wait for the end of one mount.  Tells them at the end of its block."""

    def __init__(self) -> None:
        self._waiting: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            answer: dict[str, Any] = {"ok": True}
        elif isinstance(error, CafsError):
            answer = {"ok": False} | error_fields(error)
        else:
            answer = {"ok": False} | error_fields(
                DaemonError(f"the daemon ended by a defect of cafs: {error!r}")
            )
        line = json.dumps(answer).encode() + b"\n"
        for each in self._waiting:
            try:
                # It never blocks: there is room for a line, and nothing else was sent.
                each.sendall(line)
            except OSError as fault:
                log.info("somebody who waited for the end is gone: %s", fault.strerror)
            each.close()

    async def attend(self, stream: trio.SocketStream, begun: Callable[[], Awaitable[None]]) -> None:
        """Have *stream* told at the end, also if it is closed here until then.

        Calls *begun* once that is sure, and returns when the other side has hung up.
        """
        own = socket.socket(fileno=os.dup(stream.socket.fileno()))
        self._waiting.append(own)
        try:
            await begun()
            await stream.receive_some(1)
        except trio.BrokenResourceError:
            pass
        # Not when it was cancelled: then the mount is gone, and the end is near.
        self._waiting.remove(own)
        own.close()
