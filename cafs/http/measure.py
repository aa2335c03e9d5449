"""Looks at every request and its answer, for the metrics and the access log.

Invariant: what is counted is what the client got: a request whose answer was cut off counts as
such (status 499 when the client went away first, as in nginx).
"""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cafs.http import auth
from cafs.http.accesslog import AccessLog, Line
from cafs.http.counting import Requests

CLIENT_WENT_AWAY = 499


class Measured:
    """Wraps an application."""

    def __init__(self, app: ASGIApp, requests: Requests, access_log: AccessLog | None) -> None:
        self._app = app
        self._requests = requests
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        status, body_bytes, received = CLIENT_WENT_AWAY, 0, 0

        async def sending(message: Message) -> None:
            nonlocal status, body_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            elif scope["method"] != "HEAD":
                body_bytes += len(message.get("body", b""))
            await send(message)

        async def receiving() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        try:
            await self._app(scope, receiving, sending)
        finally:
            took = time.perf_counter() - began
            location = scope.get("location", "other")
            self._requests.count(location, scope["method"], status, took, received, body_bytes)
            if self._access_log is not None:
                self._access_log.write(_line(scope, status, body_bytes, took), time.time())


def _line(scope: Scope, status: int, body_bytes: int, took_s: float) -> Line:
    headers = dict(scope["headers"])
    client = scope["client"][0] if scope["client"] else "unix:"
    if scope["state"]["connection"].trusted:
        # What nginx knows of who asked it; the last one is whom it saw itself.
        forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1").rpartition(",")[2]
        client = forwarded.strip() or client
    credentials = auth.parse_header(headers.get(b"authorization", b"").decode("latin-1"))
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    version = scope["http_version"].encode()
    request = b"%s %s%s HTTP/%s" % (scope["method"].encode(), scope["raw_path"], query, version)
    return Line(
        client,
        credentials.user if credentials else b"",
        request,
        status,
        body_bytes,
        headers.get(b"referer", b""),
        headers.get(b"user-agent", b""),
        took_s,
    )
