"""Byte ranges by the rules of nginx (ngx_http_range_filter_module).

Pure.  Invariant: a range that left this module lies within the file and is not empty.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import NamedTuple

_RANGE = re.compile(r" *(?:(?P<first>\d+) *- *(?:(?P<last>\d+) *)?|-(?P<suffix>\d+) *)", re.ASCII)
"""Where blanks may stand only one part takes them: two that could share them would try the square
of their number."""
_DIGITS_MAX = 18


class ByteRange(NamedTuple):
    """Bytes [start, end) of a file."""

    start: int
    end: int


def parse(value: str, size: int) -> list[ByteRange] | None:
    """The ranges of a Range header; none at all if it cannot be satisfied (416).

    None when the whole file is to be sent: the header makes no sense, or the ranges add up to
    more than the file has.
    """
    if value[:6].lower() != "bytes=" or len(value) < 7:
        return None
    ranges: list[ByteRange] = []
    total = 0
    for text in value[6:].split(","):
        found = _RANGE.fullmatch(text)
        if found is None or any(number and len(number) > _DIGITS_MAX for number in found.groups()):
            return []
        if found["suffix"] is not None:
            start, end = max(0, size - int(found["suffix"])), size
        else:
            start = int(found["first"])
            end = size if found["last"] is None else min(int(found["last"]) + 1, size)
        if start < end:
            ranges.append(ByteRange(start, end))
            total += end - start
        elif start == 0:
            return None
    return None if total > size else ranges


def content_range(part: ByteRange, size: int) -> str:
    """The Content-Range of one range."""
    return f"bytes {part.start}-{part.end - 1}/{size}"


class Multipart(NamedTuple):
    """A body of several ranges."""

    boundary: str
    heads: list[bytes]
    """What comes before each range."""
    tail: bytes
    length: int
    """Of the whole body."""


def multipart(parts: Sequence[ByteRange], size: int, content_type: str) -> Multipart:
    """How several ranges are put into one body."""
    boundary = f"{secrets.randbelow(10**20):020d}"
    heads = [
        (
            f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\n"
            f"Content-Range: {content_range(part, size)}\r\n\r\n"
        ).encode()
        for part in parts
    ]
    tail = f"\r\n--{boundary}--\r\n".encode()
    length = sum(map(len, heads)) + sum(part.end - part.start for part in parts) + len(tail)
    return Multipart(boundary, heads, tail, length)
