"""The links' secret, read again whenever its file changes.

Belongs to the event loop.  Invariant: there is a secret as long as the settings name a file for
one; a file that holds none leaves the one before, because nginx would not take it either.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cafs.errors import ConfigError
from cafs.http.users import version_of
from cafs.log import RateLimit

log = logging.getLogger(__name__)


class Secret:
    """What links are signed with."""

    def __init__(self, file: Path | None) -> None:
        """Raises ConfigError for a file that holds none."""
        self._file = file
        self._version: tuple[int, ...] = ()
        self._secret = b""
        self._limit = RateLimit()
        if file is not None:
            self._load(file)

    def now(self) -> bytes:
        """The secret; empty: there are no links."""
        if self._file is not None:
            try:
                self._load(self._file)
            except ConfigError as error:
                self._limit.log(
                    log, logging.ERROR, "secret", f"{error}: the secret before counts on"
                )
        return self._secret

    def _load(self, file: Path) -> None:
        try:
            version = version_of(file)
            if version == self._version:
                return
            secret = file.read_bytes().strip(b"\r\n")
        except OSError as error:
            raise ConfigError(f"http.secret_file = {file}: {error.strerror}") from None
        if not secret or b"\n" in secret:
            raise ConfigError(f"http.secret_file = {file}: it must have one line")
        self._secret, self._version = secret, version
