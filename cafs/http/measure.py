"""Looks at every request and its answer, for the metrics and the access log.

Invariant: what is counted is what the client got.  An answer that did not come to its end counts
by the reason, whatever its head said: the client went away (499, as in nginx), was too slow
(408), or the answer was cut here because it could not be finished (500).
"""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cafs.http import auth
from cafs.http.accesslog import AccessLog, Line
from cafs.http.connection import Connection
from cafs.http.counting import Requests

CLIENT_WENT_AWAY = 499
CLIENT_WAS_TOO_SLOW = 408
CUT = 500


class Measured:
    """Wraps an application."""

    def __init__(self, app: ASGIApp, requests: Requests, access_log: AccessLog | None) -> None:
        self._app = app
        self._requests = requests
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        status, body_bytes, received = 0, 0, 0
        asked = answered = gone = False
        connection = scope["state"]["connection"]

        async def sending(message: Message) -> None:
            nonlocal status, body_bytes, answered
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not (gone or connection.broken):
                if scope["method"] != "HEAD":
                    body_bytes += len(message.get("body", b""))
                answered = not message.get("more_body", False)

        async def receiving() -> Message:
            nonlocal received, asked, gone
            message = await receive()
            if message["type"] == "http.disconnect":
                gone = gone or not (asked or answered)
            else:
                received += len(message.get("body", b""))
                asked = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, receiving, sending)
        finally:
            took = time.perf_counter() - began
            if not answered:
                status = _reason(connection, gone)
            location = scope.get("location", "other")
            self._requests.count(location, scope["method"], status, took, received, body_bytes)
            if self._access_log is not None:
                self._access_log.write(_line(scope, status, body_bytes, took), time.time())


def _reason(connection: Connection, gone: bool) -> int:
    """The status of an answer that did not come to its end."""
    if gone or connection.gone:
        return CLIENT_WENT_AWAY
    return CLIENT_WAS_TOO_SLOW if connection.too_slow else CUT


def _line(scope: Scope, status: int, body_bytes: int, took_s: float) -> Line:
    headers = dict(scope["headers"])
    client = scope["client"][0] if scope["client"] else "unix:"
    if scope["state"]["connection"].trusted:
        # What nginx knows of who asked it; the last one is whom it saw itself.
        forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1").rpartition(",")[2]
        client = forwarded.strip() or client
    credentials = auth.parse_header(headers.get(b"authorization", b"").decode("latin-1"))
    return Line(
        client,
        credentials.user if credentials else b"",
        scope["state"]["line"],
        status,
        body_bytes,
        headers.get(b"referer", b""),
        headers.get(b"user-agent", b""),
        took_s,
    )
