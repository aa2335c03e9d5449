"""Blobs by what people type: a SHA-256 or a SHA-1, whole or the first digits of one.

The tables of digests are ordered by the digests' first 8 bytes, so a prefix is a range of keys;
digits beyond those are compared with the record.  Invariant: a prefix that fits several blobs
is never resolved to one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from cafs.errors import AmbiguousError, NotFoundError, UsageError
from cafs.index import layout
from cafs.types import BlobNo
from cafs.view import View

DIGITS_MIN: Final = 4
CANDIDATES_SHOWN: Final = 5

_TEXT = re.compile(r"(?:(sha256|sha1):)?([0-9a-f]+)")
_TABLES: Final = {"sha256": layout.BLOB_SHA256, "sha1": layout.BLOB_SHA1}
_LENGTHS: Final = {"sha256": 64, "sha1": 40}


class Wanted(NamedTuple):
    """A digest as it was typed."""

    kinds: tuple[str, ...]
    """Which digests it may be the beginning of: "sha256", "sha1"."""
    digits: str
    """Lower-case hexadecimal digits."""


class Match(NamedTuple):
    """A blob that fits."""

    blob: BlobNo
    kind: str
    digest: str


def parse(text: str) -> Wanted:
    """What *text* asks for: at least 4 digits, after ``sha256:`` or ``sha1:`` if only one is meant.

    Raises UsageError.
    """
    match = _TEXT.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(
            f"{text!r} is no SHA-256 or SHA-1",
            advice=f"give at least {DIGITS_MIN} hexadecimal digits",
        )
    digits = match[2]
    kinds = tuple(
        kind
        for kind, length in _LENGTHS.items()
        if match[1] in (None, kind) and len(digits) <= length
    )
    if len(digits) < DIGITS_MIN:
        raise UsageError(
            f"{text!r} is too short", advice=f"give at least {DIGITS_MIN} hexadecimal digits"
        )
    if not kinds:
        raise UsageError(f"{text!r} is too long for a {match[1] or 'SHA-256'}")
    return Wanted(kinds, digits)


def matches(view: View, wanted: Wanted) -> Iterator[Match]:
    """Blobs whose digest begins with the digits, by kind and then in order of the digest."""
    even = bytes.fromhex(wanted.digits[: len(wanted.digits) & ~1])
    prefix = even[: layout.DIGEST_PREFIX]
    for kind in wanted.kinds:
        for key, _ in view.overlay.scan(_TABLES[kind], prefix, prefix):
            # The key tells the first 16 digits without a look at the record.
            if not key[: layout.DIGEST_PREFIX].hex().startswith(wanted.digits[:16]):
                continue
            number = BlobNo(layout.digest_number(key))
            record = view.blobs.get(number)
            digest = (record.sha256 if kind == "sha256" else record.sha1).hex()
            if digest.startswith(wanted.digits):
                yield Match(number, kind, digest)


def find(view: View, text: str) -> BlobNo:
    """The one blob that *text* means.

    Raises UsageError, NotFoundError when there is none, AmbiguousError when there are several.
    """
    wanted = parse(text)
    found: dict[BlobNo, Match] = {}
    for match in matches(view, wanted):
        found.setdefault(match.blob, match)
    if not found:
        raise NotFoundError(
            f"no blob has a {' or '.join(map(_name, wanted.kinds))} "
            f"{'of' if len(wanted.digits) in _LENGTHS.values() else 'that begins with'} "
            f"{wanted.digits}"
        )
    if len(found) > 1:
        shown = [
            f"{_name(match.kind)} {match.digest} ({view.blobs.get(match.blob).size} bytes)"
            for match in list(found.values())[:CANDIDATES_SHOWN]
        ]
        more = len(found) - len(shown)
        raise AmbiguousError(
            f"{wanted.digits} is the beginning of {len(found)} blobs: "
            + ", ".join(shown)
            + (f" and {more} more" if more else "")
        )
    return next(iter(found))


def _name(kind: str) -> str:
    return "SHA-256" if kind == "sha256" else "SHA-1"
