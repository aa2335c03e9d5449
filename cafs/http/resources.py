"""Which of many app files are in the blobstore: Cloud Controller's question, read and answered.

Pure: who knows whether a file is there is a function that is passed in.  Two shapes of the same
question: version 3 of the API (an object with ``resources``) and version 2 (a list of objects
with ``sha1`` and ``size``).  Invariant: an entry of the answer is one of the request, in its
order, with nothing in it that the client did not say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from cafs.matching import MODE_LOW, SIZE_HIGH, SIZE_LOW, is_eligible

RESOURCES_MAX: Final = 5000
"""Entries of one request, as in Cloud Controller's own API."""
LENGTH: Final = 40
"""Digits of a SHA-1."""


class RefusedError(ValueError):
    """A request that Cloud Controller would refuse; the text says why."""


# No gc: a request makes ten thousand of these, and none can be part of a cycle that matters.
class Checksum(Struct, gc=False):
    """Of one file; SHA-1 in hexadecimal digits."""

    value: str


class Resource(Struct, gc=False):
    """One app file that somebody asks about, as version 3 has it."""

    checksum: Checksum
    size_in_bytes: int
    path: Any = None
    mode: str | None = None
    """Octal digits.  A file whose mode is not told is never matched."""


class Resources(Struct):
    """A request of version 3, and its answer."""

    resources: Annotated[list[Resource], Meta(min_length=1, max_length=RESOURCES_MAX)]


class _Old(Struct):
    """What version 2 insists on; what is wrong with the rest is only never matched."""

    sha1: str
    size: int
    mode: Any = None


Known = Callable[[Sequence[bytes], Sequence[int]], Sequence[bool]]
"""Tells of each SHA-1 (lower-case digits) and size whether there is such a file."""

_MODE = re.compile("[0-7]{3,4}")

_new = msgspec.json.Decoder(Resources)
_old = msgspec.json.Decoder(Annotated[list[dict[str, Any]], Meta(max_length=RESOURCES_MAX)])


def answer(body: bytes, known: Known) -> bytes:
    """The body that answers a request's: its known resources, in its shape.

    Raises RefusedError.
    """
    try:
        if body.lstrip()[:1] == b"[":
            return _answer_old(_old.decode(body), known)
        return _answer_new(_new.decode(body).resources, known)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RefusedError(f"the body is not what is expected: {error}") from None


def _answer_new(resources: list[Resource], known: Known) -> bytes:
    modes: dict[str | None, bool] = {None: False}
    asked: list[Resource] = []
    for resource in resources:
        size, mode = resource.size_in_bytes, resource.mode
        if mode not in modes:
            modes[mode] = _is_mode_matched(mode)
        if len(resource.checksum.value) != LENGTH:
            raise RefusedError("a checksum is no SHA-1 of 40 digits")
        if size < 0:
            raise RefusedError("a size is below 0")
        if modes[mode] and SIZE_LOW < size < SIZE_HIGH:
            asked.append(resource)
    names = _names([resource.checksum.value for resource in asked])
    verdicts = known(names, [resource.size_in_bytes for resource in asked])
    return msgspec.json.encode(Resources(list(compress(asked, verdicts))))


def _is_mode_matched(mode: str | None) -> bool:
    if mode is None or not _MODE.fullmatch(mode):
        raise RefusedError(f"the mode {str(mode)[:20]!r} is not three or four octal digits")
    return int(mode, 8) >= MODE_LOW


def _answer_old(entries: list[dict[str, Any]], known: Known) -> bytes:
    asked: list[dict[str, Any]] = []
    for entry in entries:
        old = msgspec.convert(entry, _Old)
        if len(old.sha1) == LENGTH and is_eligible(old.size, _mode_of(old.mode)):
            asked.append(entry)
    names = _names([entry["sha1"] for entry in asked])
    verdicts = known(names, [entry["size"] for entry in asked])
    return msgspec.json.encode(list(compress(asked, verdicts)))


def _names(digests: Sequence[str]) -> list[bytes]:
    """The names of files with these SHA-1s: lower case, as Cloud Controller stores them."""
    joined = "".join(digests).lower()
    if not joined.isascii():
        return [each.lower().encode("utf-8", "replace") for each in digests]
    # All at once and cut: a third of the time.
    data = joined.encode()
    return [data[start : start + LENGTH] for start in range(0, len(data), LENGTH)]


def _mode_of(value: object) -> int | None:
    try:
        return int(value, 8) if isinstance(value, str) else None
    except ValueError:
        return None
