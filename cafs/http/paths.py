"""Paths of requests: from what the client sent to names of the tree, and back.

Pure.  Follows nginx (ngx_http_parse_complex_uri): percent signs are decoded first, an encoded
slash included, then slashes are merged and dots resolved.  Invariant: a name that left this
module is not empty, not a dot entry, and has neither a slash nor a NUL.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from cafs.errors import UsageError

_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})?")
_ORDINARY = re.compile(rb"(?:/[A-Za-z0-9_~+=,:@!$&'()*;-][A-Za-z0-9._~+=,:@!$&'()*;-]*)+")
UNESCAPED = "/!$&'()*+,;=:@-._~"
"""Characters that nginx leaves as they are in a path."""


class TreePath(NamedTuple):
    """A path below the root of the tree."""

    names: tuple[bytes, ...]
    slash: bool
    """Whether it ended in a slash; the root always does."""


def normalized(raw: bytes) -> bytes:
    """The decoded path of a request target, without query and fragment.

    Raises UsageError for one that nginx refuses with 400.
    """
    if _ORDINARY.fullmatch(raw):
        return raw
    raw = raw.partition(b"?")[0].partition(b"#")[0]
    if raw[:7].lower() == b"http://" or raw[:8].lower() == b"https://":
        # The absolute form, which clients of a proxy send.
        raw = b"/" + raw.partition(b"//")[2].partition(b"/")[2]
    if not raw.startswith(b"/"):
        raise UsageError("the path of the request does not begin with a slash")
    decoded = _PERCENT.sub(_decoded, raw)
    if b"\0" in decoded:
        raise UsageError("the path of the request has a NUL in it")
    names: list[bytes] = []
    parts = decoded.split(b"/")[1:]
    for part in parts:
        if part == b"..":
            if not names:
                raise UsageError("the path of the request leads above the root")
            names.pop()
        elif part not in (b"", b"."):
            names.append(part)
    slash = b"/" if names and parts[-1] in (b"", b".", b"..") else b""
    return b"/" + b"/".join(names) + slash


def _decoded(found: re.Match[bytes]) -> bytes:
    if found[1] is None:
        raise UsageError("the path of the request has a broken percent sign")
    return bytes((int(found[1], 16),))


def below(path: bytes, prefix: bytes) -> TreePath:
    """A normalized path as one of the tree, after the prefix of its location (``/admin/``)."""
    rest = path[len(prefix) :]
    names = tuple(name for name in rest.split(b"/") if name)
    return TreePath(names, rest.endswith(b"/") or not names)


def escaped(path: bytes) -> str:
    """A decoded path as it is written in a URL."""
    return quote_from_bytes(path, safe=UNESCAPED)
