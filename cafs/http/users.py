"""The file of users, read again whenever it changes.

Belongs to the event loop.  Invariant: what counts is the file as it is at the moment of the
request; a password that was found right is not computed anew while the file stays the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from pathlib import Path

import trio

from cafs.http import auth
from cafs.http.auth import Credentials
from cafs.log import RateLimit

log = logging.getLogger(__name__)

REMEMBERED_MAX = 1000
THREADS_MAX = 2
"""Passwords that are computed at once: each takes a core for some milliseconds."""


class Users:
    """Who may come in."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._version: tuple[int, ...] = ()
        self._users: dict[bytes, bytes] = {}
        self._right: set[bytes] = set()
        self._key = secrets.token_bytes(32)
        self._limit = RateLimit()
        self._crowd = trio.CapacityLimiter(THREADS_MAX)

    async def knows(self, credentials: Credentials) -> bool | None:
        """Whether user and password are right; None when there is no file to say so."""
        if not self._load():
            return None
        found = auth.find(self._users, credentials.user)
        # A name that is not there takes as long as one that is, so nobody learns which are.
        stored = next(iter(self._users.values()), b"{PLAIN}") if found is None else found
        if not auth.is_slow(stored):
            return auth.matches(stored, credentials.password) and found is not None
        token = hashlib.blake2b(
            b"\0".join((*credentials, stored)), key=self._key, digest_size=32
        ).digest()
        if found is not None and token in self._right:
            return True
        right = await trio.to_thread.run_sync(
            auth.matches, stored, credentials.password, limiter=self._crowd
        )
        if found is None:
            return False
        if right:
            if len(self._right) >= REMEMBERED_MAX:
                self._right.clear()
            self._right.add(token)
        return right

    def _load(self) -> bool:
        if self._file is None:
            return False
        try:
            version = version_of(self._file)
            if version != self._version:
                self._users = auth.parse_users(self._file.read_bytes())
                self._right.clear()
                self._version = version
        except OSError as error:
            self._version = ()
            self._limit.log(
                log, logging.ERROR, "users", f"{self._file}: {error.strerror}: nobody gets in"
            )
            return False
        return True


def version_of(file: Path) -> tuple[int, ...]:
    """What is another one when the file's content is; raises OSError."""
    status = os.stat(file)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
