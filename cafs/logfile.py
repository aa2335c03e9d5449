"""The log file of a daemon: rotated, and followed by stdout and stderr.

Invariant: what CPython or libfuse write to stderr at their last gasp is in the file that is
current, because both descriptors are moved with every rotation.
"""

from __future__ import annotations

import logging.handlers
import os
from pathlib import Path
from typing import Final

from cafs.log import LineFormatter, install

FILE_BYTES: Final = 16 << 20
"""A log file is rotated at this size."""

OLDER_FILES: Final = 3
"""How many rotated ones are kept."""


class _DaemonFileHandler(logging.handlers.RotatingFileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(
            path, maxBytes=FILE_BYTES, backupCount=OLDER_FILES, errors="backslashreplace"
        )
        self._follow()

    def doRollover(self) -> None:
        super().doRollover()
        self._follow()

    def _follow(self) -> None:
        if self.stream is not None:
            os.dup2(self.stream.fileno(), 1)
            os.dup2(self.stream.fileno(), 2)


def to_file(level: str, path: Path) -> None:
    """Log to the rotating file *path* from *level* on, and let stdout and stderr follow it.

    Raises :class:`OSError` when the file cannot be opened.
    """
    handler = _DaemonFileHandler(path)
    handler.setFormatter(LineFormatter())
    install(level, handler)
