"""A program file as it was read once: its bytes and their SHA-256.

Invariant: what runs are the bytes that were read and hashed, whatever happens to the file
afterwards, because they are run from a copy in memory.  So an upgrade of the machine while the
daemon runs cannot put another engine in the place of the one that was proven, and a copy kept
in a store can be used even where the store's disk is mounted noexec.  What is no binary is no
program here: a script names others, and its bytes say nothing of what these will make tomorrow.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cafs.errors import EngineError

SIZE_MAX: Final = 64 << 20
"""No gzip and no zlib is larger; whatever is, is something else."""
_ELF: Final = b"\x7fELF"

_MFD_EXEC: Final = 0x10
"""Without it, Linux 6.3 and later may make a file that cannot be run (vm.memfd_noexec)."""


def _memory_file(name: str) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # An older Linux, which does not know the flag and needs none.
    return os.memfd_create(name, os.MFD_CLOEXEC)


class Program:
    """An executable or a shared library."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        """Where it was read from; it may be gone, or another, by now."""
        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()

    def __repr__(self) -> str:
        return f"Program({self.path}, {self.sha256[:12]})"

    @classmethod
    def read(cls, path: Path) -> Program:
        """Read a program file.

        Raises :class:`EngineError` when that is not possible, and for what is no binary.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            with open(fd, "rb") as stream:
                content = stream.read(SIZE_MAX + 1)
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
        if not 0 < len(content) <= SIZE_MAX:
            raise EngineError(f"{path}: no engine has {len(content)} bytes or more")
        if not content.startswith(_ELF):
            raise EngineError(
                f"{path} is not usable: it is no binary (ELF), and a copy of a script does not "
                "keep the programs that it runs",
                advice="put the program itself first in the daemon's PATH",
            )
        return cls(path, content)

    @contextmanager
    def image(self) -> Iterator[int]:
        """A descriptor of a file in memory that holds the bytes; closed across exec.

        It can be executed, or loaded, as ``/proc/self/fd/N``.  Raises :class:`EngineError`.
        """
        try:
            fd = _memory_file(self.path.name)
        except OSError as error:
            raise EngineError(
                f"{self.path}: there is no memory file to run it from: {error.strerror}",
                advice="see sysctl vm.memfd_noexec, which must not be 2",
            ) from error
        try:
            view = memoryview(self.content)
            while view:
                view = view[os.write(fd, view) :]
        except OSError as error:
            os.close(fd)
            raise EngineError(f"{self.path}: no memory to run it from: {error.strerror}") from error
        try:
            yield fd
        finally:
            os.close(fd)
