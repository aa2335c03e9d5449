"""Request bodies that are read whole, because they are small by nature.

Invariant: no more than the limit is ever held, whatever the client sends or says it will.
"""

from __future__ import annotations

import trio
from starlette.requests import Request

from cafs.errors import UsageError


class WentAwayError(UsageError):
    """The client is gone, or stopped sending."""


async def read_body(request: Request, limit: int, timeout_s: float) -> bytes | None:
    """The body, or None if it has more than *limit* bytes.

    Raises WentAwayError when the client sends nothing for *timeout_s*.
    """
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        return None
    body = bytearray()
    more = True
    while more:
        with trio.move_on_after(timeout_s) as scope:
            message = await request.receive()
        if scope.cancelled_caught or message["type"] == "http.disconnect":
            raise WentAwayError("the body did not come", advice="")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            return None
    return bytes(body)


def has_body(request: Request) -> bool:
    """Whether the request comes with a body, for methods that take none."""
    headers = request.headers
    told = headers.get("content-length", "0")
    return "transfer-encoding" in headers or told.strip() not in ("0", "")
