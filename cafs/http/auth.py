"""Passwords as nginx's users files have them (ngx_http_auth_basic_module).

Pure.  A line is ``user:password`` or ``user:password:comment``; the password may be ``{PLAIN}``
and itself, ``{SHA}`` or ``{SSHA}`` and Base64, ``$apr1$`` (Apache's MD5), or what crypt(3)
knows.  Invariant: how long a comparison takes says nothing about how much of it was right.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import functools
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import NamedTuple

_CRYPT_DATA = 256 << 10
"""At least the size of struct crypt_data, which glibc and libxcrypt have different ideas of."""
_ITOA64 = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_APR1_ROUNDS = 1000


class Credentials(NamedTuple):
    """What a client says of itself."""

    user: bytes
    password: bytes


def parse_header(value: str | None) -> Credentials | None:
    """The credentials of an Authorization header; None for what is none of Basic."""
    scheme, _, encoded = (value or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    # As nginx reads it: up to the first padding, of which there may be any amount or none.
    digits = encoded.strip(" ").partition("=")[0]
    try:
        decoded = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    user, colon, password = decoded.partition(b":")
    return Credentials(user, password) if colon else None


def parse_users(content: bytes) -> dict[bytes, bytes]:
    """Users and their stored passwords; of lines with the same user the first counts."""
    users: dict[bytes, bytes] = {}
    for line in content.splitlines():
        user, colon, rest = line.partition(b":")
        if line.startswith(b"#") or not user or not colon:
            continue
        users.setdefault(user, rest.partition(b":")[0].rstrip())
    return users


def find(users: Mapping[bytes, bytes], user: bytes) -> bytes | None:
    """The stored password of a user.  Looks at all of them, whoever is asked for."""
    found = None
    for name, stored in users.items():
        if hmac.compare_digest(name, user):
            found = stored
    return found


def matches(stored: bytes, password: bytes) -> bool:
    """Whether a password is the stored one.  May take tens of milliseconds for crypt(3)."""
    if stored.startswith(b"{PLAIN}"):
        return hmac.compare_digest(stored[7:], password)
    if stored.startswith(b"{SHA}"):
        digest = hashlib.sha1(password, usedforsecurity=False).digest()
        return hmac.compare_digest(_base64(stored[5:]), digest)
    if stored.startswith(b"{SSHA}"):
        salted = _base64(stored[6:])
        salt = salted[20:]
        digest = hashlib.sha1(password + salt, usedforsecurity=False).digest()
        return hmac.compare_digest(salted, digest + salt)
    if stored.startswith(b"$apr1$"):
        return hmac.compare_digest(stored, apr1(password, stored))
    hashed = _crypt(password, stored)
    return hashed is not None and hmac.compare_digest(stored, hashed)


def is_slow(stored: bytes) -> bool:
    """Whether comparing takes so long that a thread should do it."""
    return not stored.startswith((b"{PLAIN}", b"{SHA}", b"{SSHA}"))


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def apr1(password: bytes, stored: bytes) -> bytes:
    """Apache's variant of MD5-crypt; *stored* begins with ``$apr1$`` and the salt."""
    salt = stored[6:].partition(b"$")[0][:8]

    def md5(*pieces: bytes) -> bytes:
        return hashlib.md5(b"".join(pieces), usedforsecurity=False).digest()

    inner = md5(password, salt, password)
    length = len(password)
    mixed = password + b"$apr1$" + salt
    mixed += (inner * (length // 16 + 1))[:length]
    while length:
        mixed += b"\0" if length & 1 else password[:1]
        length >>= 1
    digest = md5(mixed)
    for turn in range(_APR1_ROUNDS):
        digest = md5(
            password if turn & 1 else digest,
            salt if turn % 3 else b"",
            password if turn % 7 else b"",
            digest if turn & 1 else password,
        )
    triples = ((0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5))
    text = b"".join(
        _sixes(digest[high] << 16 | digest[middle] << 8 | digest[low], 4)
        for high, middle, low in triples
    )
    return b"$apr1$" + salt + b"$" + text + _sixes(digest[11], 2)


def _sixes(number: int, count: int) -> bytes:
    return bytes(_ITOA64[number >> 6 * place & 63] for place in range(count))


@functools.cache
def _crypt_r() -> Callable[..., bytes | None] | None:
    # The module crypt of the standard library ends with Python 3.12.
    for name in ("libcrypt.so.1", "libcrypt.so.2"):
        try:
            function = ctypes.CDLL(name).crypt_r
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_char_p
        function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        found: Callable[..., bytes | None] = function
        return found
    return None


def _crypt(password: bytes, stored: bytes) -> bytes | None:
    function = _crypt_r()
    if function is None or b"\0" in password or not stored:
        return None
    return function(password, stored, ctypes.create_string_buffer(_CRYPT_DATA))
