"""Conditional requests by the rules of nginx (ngx_http_not_modified_filter_module).

Pure.  They differ from RFC 9110 on purpose: a date matches only when it is equal, and with both
validators both must match for 304.  Clients cache by that, so it is not to be improved.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from cafs.http import httpdate


class Outcome(Enum):
    """What the conditions of a request come to."""

    SEND = 200
    NOT_MODIFIED = 304
    FAILED = 412


def etag_of(mtime_s: int, size: int) -> str:
    """nginx's ETag of a file."""
    return f'"{mtime_s & 0xFFFFFFFFFFFFFFFF:x}-{size:x}"'


def evaluate(headers: Mapping[str, str], etag: str, mtime_s: int) -> Outcome:
    """Hold a request's headers (lower case) against a file."""
    unmodified_since = headers.get("if-unmodified-since")
    if unmodified_since is not None:
        until_s = httpdate.parse(unmodified_since)
        if until_s is None or until_s < mtime_s:
            return Outcome.FAILED
    match = headers.get("if-match")
    if match is not None and not _in_list(match, etag, weak=False):
        return Outcome.FAILED
    modified_since = headers.get("if-modified-since")
    none_match = headers.get("if-none-match")
    if modified_since is None and none_match is None:
        return Outcome.SEND
    if modified_since is not None and httpdate.parse(modified_since) != mtime_s:
        return Outcome.SEND
    if none_match is not None and not _in_list(none_match, etag, weak=True):
        return Outcome.SEND
    return Outcome.NOT_MODIFIED


def range_applies(if_range: str | None, etag: str, mtime_s: int) -> bool:
    """Whether If-Range, if there is one, lets a Range count."""
    if if_range is None:
        return True
    if if_range.endswith('"') and len(if_range) >= 2:
        return if_range == etag
    return httpdate.parse(if_range) == mtime_s


def _in_list(value: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags names ours; reads on as long as it makes sense."""
    if value == "*":
        return True
    rest = value
    while rest:
        rest = rest.lstrip(" ,\t")
        if weak and rest.startswith("W/"):
            rest = rest[2:]
        if rest.startswith(etag):
            after = rest[len(etag) :].lstrip(" \t")
            if not after or after.startswith(","):
                return True
        _, comma, rest = rest.partition(",")
        if not comma:
            return False
    return False
