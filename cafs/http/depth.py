"""The Depth header of WebDAV (RFC 4918, section 10.2), as nginx reads it."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

INFINITY: Final = "infinity"


def depth_of(request: Request) -> str | None:
    """The header's value, None without one.  What is none of the three values stays as it is."""
    value = request.headers.get("depth")
    return None if value is None else value.strip()
