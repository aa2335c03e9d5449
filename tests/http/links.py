"""Signed links as their signers make them, written from the contract and not from cafs."""

from __future__ import annotations

import base64
import hashlib
import hmac


def md5_of(secret: str, uri: str, expires: int) -> str:
    """The ``md5`` argument of a link to *uri*, which is decoded and begins with /read or /write."""
    digest = hashlib.md5(f"{expires}{uri} {secret}".encode()).digest()
    return _without_padding(digest)


def md5_link(secret: str, uri: str, expires: int) -> str:
    """Path and query of a link that blobstore_url_signer would make."""
    return f"{uri}?md5={md5_of(secret, uri, expires)}&expires={expires}"


def hmac_of(secret: str, verb: str, path: str, signed_at: int, lifetime_s: int) -> str:
    """The ``st`` argument of a link; *path* is directory key and object id."""
    message = f"{verb}{path}{signed_at}{lifetime_s}".encode()
    return _without_padding(hmac.new(secret.encode(), message, hashlib.sha256).digest())


def hmac_link(secret: str, verb: str, path: str, signed_at: int, lifetime_s: int) -> str:
    """Path and query of a link that storage-cli would make."""
    signature = hmac_of(secret, verb, path, signed_at, lifetime_s)
    return f"/signed/{path}?e={lifetime_s}&st={signature}&ts={signed_at}"


def _without_padding(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
