"""The copies of the engines' programs in ``STORE/engines``, each named by its SHA-256.

Invariant: what is read here has the SHA-256 that it was asked for by; a copy that is missing, or
holds anything else, is an :class:`EngineError`.  Blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cafs.archives.program import Program
from cafs.durable import Disk
from cafs.errors import EngineError, from_os_error

DIRECTORY: Final = "engines"
"""In the store."""


class Copies:
    """Those of one store.  Any thread; one that writes."""

    def __init__(self, store: Path, disk: Disk) -> None:
        self._store = store
        self._disk = disk
        self.directory = store / DIRECTORY

    def read(self, name: str) -> Program:
        """The program that is kept as *name*.  Raises EngineError."""
        program = Program.read(self.directory / name)
        if program.sha256 != name:
            raise EngineError(f"{program.path} is not what was kept there")
        return program

    def write(self, program: Program) -> None:
        """Keep a program, durably.  Raises DiskFullError and its kin."""
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"make the directory {self.directory}") from error
        self._disk.sync_directory(self._store)
        self._disk.write_file(self.directory / program.sha256, program.content, 0o755)

    def there(self, name: str) -> bool:
        """Whether a file is kept as *name*, whatever it holds: quick."""
        return (self.directory / name).exists()
