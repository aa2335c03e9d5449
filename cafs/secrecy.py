"""Which files with secrets every user of the machine can read.

Only looks at permissions.  Invariant: a file is named only if it can be reached, too: one in a
directory that others may not enter is as safe as the directory.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from cafs.http_options import HttpOptions
from cafs.serve_options import ServeOptions


def exposed(http: HttpOptions, serve: ServeOptions) -> list[str]:
    """A sentence for each secret that is none, with the command that makes it one."""
    return [
        f"{name} = {path}: every user of this machine can {how} it; "
        f"keep them out with: chmod o-rwx {quote(str(path))}"
        for name, path in _secrets(http, serve)
        if (how := _open_to_others(path)) is not None
    ]


def _secrets(http: HttpOptions, serve: ServeOptions) -> Iterator[tuple[str, Path]]:
    if http.certificate_key is not None:
        yield "http.certificate_key", http.certificate_key
    elif http.certificate is not None:
        # Without a key of its own the certificate's file has it.
        yield "http.certificate", http.certificate
    if serve.public_certificate_key is not None:
        yield "serve.public_certificate_key", serve.public_certificate_key
    if http.users_file is not None:
        yield "http.users_file", http.users_file
    if http.secret_file is not None:
        yield "http.secret_file", http.secret_file


def _open_to_others(path: Path) -> str | None:
    """What others may do with it; None when nothing, or when it cannot be looked at."""
    try:
        path = path.resolve()
        mode = path.stat().st_mode
        reached = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    except OSError:
        # Whoever opens it says so.
        return None
    if not reached or not mode & (stat.S_IROTH | stat.S_IWOTH):
        return None
    return "read" if mode & stat.S_IROTH else "change"
