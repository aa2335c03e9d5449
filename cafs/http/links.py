"""Signed links: the two kinds that Cloud Foundry uses, made and checked.

Pure.  MD5 links are those of nginx's secure_link and of blobstore_url_signer; HMAC links are
those of storage-cli and ngx_http_hmac_secure_link.  Invariant: signatures are compared in
constant time, and nothing about the file is looked at before that.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from enum import Enum

_INTEGER = re.compile(rb"[0-9]{1,18}")
_SIGNED_AT = re.compile(rb"[1-9][0-9]{9}")
"""A time as it is written from 2001 to 2286.

Nothing stands between the signed path, time and lifetime, so what says ``ts=1700000000`` and
``e=900`` is signed as well for ``ts=170000000090`` and ``e=0``, which is for ever, and for
``ts=1`` and ``e=700000000900``.  Where one spelling only is taken for a time and for a lifetime,
digits can be moved only through both, and then the path is another one and the time far off.
"""
_LIFETIME = re.compile(rb"0|[1-9][0-9]{0,17}")
FUTURE_MAX_S = 86_400
"""How far ahead of ours a signer's clock may be."""


class Verdict(Enum):
    """What a link's check came to."""

    GOOD = "good"
    BAD = "bad"
    """Missing, wrong, or without an end."""
    EXPIRED = "expired"
    """Right, but its time is over."""


def argument(query: bytes, name: bytes) -> bytes:
    """The first value of an argument in a query, not decoded, as nginx's $arg_name; or empty."""
    for pair in query.split(b"&"):
        key, equals, value = pair.partition(b"=")
        if equals and key.lower() == name:
            return value
    return b""


def md5_signature(secret: bytes, path: bytes, expires: bytes) -> bytes:
    """What ``md5=`` must be for a decoded and normalized path, the location included."""
    digest = hashlib.md5(expires + path + b" " + secret, usedforsecurity=False).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=")


def check_md5(secret: bytes, path: bytes, query: bytes, now_s: float) -> Verdict:
    """Check the arguments ``md5`` and ``expires`` (seconds since 1970) of a request."""
    given, expires = argument(query, b"md5"), argument(query, b"expires")
    until = _number(expires)
    right = hmac.compare_digest(md5_signature(secret, path, expires), given.rstrip(b"="))
    if not secret or not right or not until:
        return Verdict.BAD
    return Verdict.EXPIRED if until < now_s else Verdict.GOOD


def hmac_signature(secret: bytes, method: bytes, path: bytes, ts: bytes, lifetime: bytes) -> bytes:
    """What ``st=`` must be; *path* is the decoded one below ``/signed/``."""
    digest = hmac.digest(secret, method + path + ts + lifetime, "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=")


def check_hmac(secret: bytes, method: bytes, path: bytes, query: bytes, now_s: float) -> Verdict:
    """Check the arguments ``st``, ``ts`` (when it was signed) and ``e`` (lifetime; 0: for ever)."""
    given, ts, lifetime = (argument(query, name) for name in (b"st", b"ts", b"e"))
    if not secret:
        return Verdict.BAD
    right = hmac.compare_digest(hmac_signature(secret, method, path, ts, lifetime), given)
    if not right or not _SIGNED_AT.fullmatch(ts) or not _LIFETIME.fullmatch(lifetime):
        return Verdict.BAD
    begun, lasts = int(ts), int(lifetime)
    if begun > now_s + FUTURE_MAX_S:
        return Verdict.BAD
    return Verdict.EXPIRED if lasts and begun + lasts < now_s else Verdict.GOOD


def _number(text: bytes) -> int | None:
    return int(text) if _INTEGER.fullmatch(text) else None
