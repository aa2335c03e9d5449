"""Which files of an app directory a store has already, as ``cf push`` would find out.

The directory is read as the cf command line does: names that it leaves out by default, symbolic
links not followed, SHA-1 of each file that may be matched.  Only looks.  Invariant: a file is
called known exactly if POST /resource_matches would say so of it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from cafs.errors import NotFoundError, UsageError, from_os_error
from cafs.matching import is_eligible, partitioned
from cafs.operate.paths import attr_of, resolve
from cafs.view import View

IGNORED: Final = frozenset(
    {
        b".cfignore",
        b".DS_Store",
        b".git",
        b".gitignore",
        b".hg",
        b".svn",
        b"_darcs",
        b"manifest.yaml",
        b"manifest.yml",
    }
)
"""Names that ``cf push`` leaves out of any app."""

OnBytes = Callable[[int], None]
"""Told how many bytes have been hashed."""


class AppFile(NamedTuple):
    """A regular file of an app."""

    path: bytes
    """Below the app's directory."""
    size: int
    mode: int
    """Permissions."""

    @property
    def eligible(self) -> bool:
        """Whether it is ever matched; if not it is uploaded each time."""
        return is_eligible(self.size, self.mode)


class Matched(NamedTuple):
    """An eligible file, and whether the store has it."""

    file: AppFile
    sha1: str
    known: bool


def app_files(directory: bytes) -> list[AppFile]:
    """The regular files of an app, in order of their paths.

    Raises UsageError when there is no such directory, AccessError and its kin.
    """
    if not os.path.isdir(directory):
        raise UsageError(
            f"{os.fsdecode(directory)} is no directory", advice="name an app's directory"
        )
    return sorted(_walk(directory, b""))


def _walk(directory: bytes, below: bytes) -> Iterator[AppFile]:
    try:
        with os.scandir(os.path.join(directory, below)) as entries:
            for entry in entries:
                if entry.name in IGNORED:
                    continue
                path = os.path.join(below, entry.name)
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    yield from _walk(directory, path)
                elif stat.S_ISREG(status.st_mode):
                    yield AppFile(path, status.st_size, stat.S_IMODE(status.st_mode))
    except OSError as error:
        place = os.fsdecode(os.path.join(directory, below))
        raise from_os_error(error, f"read {place}") from error


def match(
    view: View,
    directory: bytes,
    files: list[AppFile],
    resource_directory: str,
    on_bytes: OnBytes | None = None,
) -> Iterator[Matched]:
    """Hash the eligible ones of *files* and look them up.  Raises AccessError and its kin."""
    done = 0
    for file in files:
        if not file.eligible:
            continue
        sha1 = _sha1(os.path.join(directory, file.path))
        done += file.size
        if on_bytes is not None:
            on_bytes(done)
        yield Matched(file, sha1, _is_known(view, resource_directory, sha1, file.size))


def _sha1(path: bytes) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(
                stream, lambda: hashlib.sha1(usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise from_os_error(error, f"read {os.fsdecode(path)}") from error


def _is_known(view: View, resource_directory: str, sha1: str, size: int) -> bool:
    path = f"/{resource_directory}/{partitioned(sha1)}".encode()
    try:
        attr = attr_of(view, resolve(view, path).ino)
    except NotFoundError:
        return False
    return stat.S_ISREG(attr.mode) and attr.size == size
