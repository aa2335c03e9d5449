"""Builds and runs the C client that asks the filesystem; see client.c for what it can do.

Invariant: what it reports was measured by its own clock around the system calls alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

_SOURCE = Path(__file__).with_name("client.c")


class ClientError(Exception):
    """The client could not be built, or a system call in it failed."""


class Answer(NamedTuple):
    """What one run of the client measured."""

    seconds: float
    operations: int
    bytes: int

    @property
    def per_second(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def mb_per_second(self) -> float:
        """10^6 bytes a second."""
        return self.bytes / 1e6 / self.seconds


class Client:
    """The built client."""

    def __init__(self, where: Path) -> None:
        """Build it in the directory *where*, unless this very source was built there before.

        Raises:
            ClientError: there is no C compiler, or it failed.
        """
        digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
        self._path = where / f"client-{digest}"
        if self._path.exists():
            return
        compiler = shutil.which("cc")
        if compiler is None:
            raise ClientError("a C compiler is needed for the benchmarks' client: install gcc")
        where.mkdir(parents=True, exist_ok=True)
        made = self._path.with_suffix(".new")
        subprocess.run([compiler, "-O2", "-o", str(made), str(_SOURCE)], check=True)
        made.replace(self._path)

    def __call__(self, *arguments: str | int | os.PathLike[str]) -> Answer:
        """Run it.

        Raises:
            ClientError: a system call failed where it should not have.
        """
        command = [
            str(self._path),
            *(os.fspath(a) if not isinstance(a, int) else str(a) for a in arguments),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClientError(f"client {arguments[0]}: {done.stderr.strip()}")
        return Answer(**json.loads(done.stdout))
