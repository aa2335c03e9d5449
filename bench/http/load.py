"""Builds and runs the HTTP load generator; see load.c for what it does.

Invariant: an answer with another status than the plan says ends the run, so that no server is
ever praised for errors that it gives quickly.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

_SOURCE = Path(__file__).with_name("load.c")

Mode = Literal["keep", "fresh"]


class LoadError(Exception):
    """The generator could not be built, or a server did not answer as it should."""


class Ask(NamedTuple):
    """One request, and the status that must come back."""

    method: str
    path: str
    status: int
    body: Path | None = None
    header: str = "-"


class Timing(NamedTuple):
    """What one run of the generator measured."""

    seconds: float
    operations: int
    bytes: int
    p50_s: float
    p99_s: float
    max_s: float
    cpu_s: float
    """Of the generator itself."""


class Load:
    """The built generator."""

    def __init__(self, where: Path) -> None:
        """Build it in *where*, unless this very source was built there before.

        Raises:
            LoadError: there is no C compiler or no OpenSSL to build with.
        """
        digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
        self._path = where / f"load-{digest}"
        if self._path.exists():
            return
        compiler = shutil.which("cc")
        if compiler is None:
            raise LoadError("a C compiler is needed for the load generator: install gcc")
        where.mkdir(parents=True, exist_ok=True)
        made = self._path.with_suffix(".new")
        command = [compiler, "-O2", "-o", str(made), str(_SOURCE), "-lssl", "-lcrypto"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LoadError(f"the load generator does not compile:\n{done.stderr}")
        made.replace(self._path)

    def __call__(
        self,
        port: int,
        asks: Iterable[Ask],
        headers: Sequence[str],
        *,
        tls: bool,
        connections: int = 1,
        mode: Mode = "keep",
    ) -> Timing:
        """Send all of *asks* to this machine's *port*, in their order.

        Raises:
            LoadError: an answer was wrong, cut off, or did not come.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".plan", dir="/dev/shm") as plan:
            for ask in asks:
                plan.write(
                    f"{ask.method}\t{ask.path}\t{ask.status}\t{ask.body or '-'}\t{ask.header}\n"
                )
            plan.flush()
            command = [
                *(str(self._path), "127.0.0.1", str(port), "https" if tls else "http"),
                *(str(connections), mode, plan.name, *headers),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LoadError(done.stderr.strip())
        return Timing(**json.loads(done.stdout))
