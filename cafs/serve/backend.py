"""What nginx is to stand before, and the files that prove who may do what.

Only says it.  Invariant: paths, and no secret, are in here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

GRACE_S: Final = 60.0
"""What the module takes for it unless it is told."""


@dataclass(frozen=True)
class Credentials:
    """Files that prove who may do what; None where there is no such file."""

    users: Path
    """For Basic authentication, in nginx's formats."""
    certificate: Path
    certificate_key: Path
    public_certificate: Path
    public_certificate_key: Path
    worker: str | None = None
    """User and group of nginx's workers; None: those that nginx is started as."""
    secret: Path | None = None
    """Of the links: MD5 ones at ``/read/`` and ``/write/``, HMAC ones at ``/signed/``."""


@dataclass(frozen=True)
class Indexed:
    """A store: HEAD and GET by the module if there is one, all else by the daemon."""

    store: Path
    socket: Path
    """Where the daemon listens."""
    module: Path | None
    pending: Path | None = None
    """The pending filter, when it is not where the store says."""
    grace_s: float = GRACE_S
    """How long the daemon does not touch what was freed."""


@dataclass(frozen=True)
class Directory:
    """A directory that nginx serves and changes by itself."""

    root: Path
