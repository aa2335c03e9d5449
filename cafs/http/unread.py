"""What is left of a request's body when its answer is known before it was read.

Its next request would be looked for in the rest of this one.  So the rest is read and dropped:
all of it when it is short, so that the connection lives on, and else beside the answer, after
which the connection is closed; who still sends then is listened to for a while
(Connection.linger), or would lose the answer.  Nobody is asked to send (100 Continue) what will
be dropped.
"""

from __future__ import annotations

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cafs.http.heads import NotHttpError

DROP_MAX = 64 << 20
"""Bytes of a body that are read for nothing before the answer goes out."""
DROP_MAX_S = 10.0


class UnreadBody:
    """Wraps an application that need not read the bodies of its requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]):
            rest = _Rest(scope, receive, send)
            await self._app(scope, rest.receive, rest.send)
        else:
            await self._app(scope, receive, send)


class _Rest:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._ended = False
        self._is_waiting = any(
            name == b"expect" and value.lower() == b"100-continue"
            for name, value in scope["headers"]
        )

    async def receive(self) -> Message:
        self._is_waiting = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._ended = True
        return message

    async def send(self, message: Message) -> None:
        if self._ended:
            await self._send(message)
        elif message["type"] == "http.response.start":
            if not self._is_waiting and not self._scope.get("stalled"):
                await self._drop(DROP_MAX, DROP_MAX_S)
            if not self._ended:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await self._send(message)
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drop, None, None)
                await self._send(message)
                nursery.cancel_scope.cancel()

    async def _drop(self, limit: int | None, seconds: float | None) -> None:
        dropped = 0
        with trio.move_on_after(float("inf") if seconds is None else seconds):
            try:
                while not self._ended and (limit is None or dropped < limit):
                    dropped += len((await self.receive()).get("body", b""))
            except NotHttpError:
                # It never ends, so the connection will be closed.
                pass
