"""The parent's end of the writer process: starts it, sends batches, restarts it if it dies.

All methods block and may be called from any one thread at a time.
"""

from __future__ import annotations

import logging
import marshal
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb

from cafs.errors import CafsError, DiskError, DiskFullError, IndexDamagedError, ReadOnlyError
from cafs.index import writer_process
from cafs.index.overlay import Layer

log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<Q")
_KINDS: dict[str, type[CafsError]] = {
    "full": DiskFullError,
    "readonly": ReadOnlyError,
    "io": DiskError,
    "damaged": IndexDamagedError,
}


def fault(error: lmdb.Error, directory: Path, doing: str) -> CafsError:
    """The error of cafs.errors for one of LMDB that writes to *directory*."""
    kind = writer_process.kind_of(error, str(directory))
    return _KINDS.get(kind, DiskError)(f"{doing} at {directory}: {error}")


class IndexWriter:
    """Writes batches to the index at *directory*, durably, one transaction each.

    *lock_fd* is the store's lock: the child inherits it, so that no other daemon can begin
    while a child of a killed one still finishes its last transaction.
    """

    def __init__(self, directory: Path, lock_fd: int) -> None:
        self._directory = directory
        self._lock_fd = lock_fd
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the child now (else the first batch does it)."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cafs.index.writer_process", str(self._directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(self._lock_fd,),
                bufsize=0,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        return self._process

    @property
    def pid(self) -> int:
        """The child's process id; 0 when there is none."""
        return self._process.pid if self._process else 0

    def write(self, layer: Layer) -> None:
        """Apply a layer in one transaction; returns when it is on disk.

        Raises DiskFullError, ReadOnlyError, DiskError or IndexDamagedError, and then nothing
        of the layer was applied.  Applying a layer twice is the same as once, which is what
        makes it right to send it again to a new child.
        """
        self._call("write", [dict(changes) for changes in layer], "commit the index")

    def copy(self, directory: Path) -> None:
        """Make a compact copy of the index, as of now, in an existing empty directory."""
        self._call("copy", str(directory), "copy the index")

    def prepare_shrunk(self) -> None:
        """Make a copy of the index without free pages beside it, durable; nothing may be
        written between this and replace_with_shrunk()."""
        self._call("prepare shrunk", None, "copy the index")

    def replace_with_shrunk(self) -> None:
        """Put that copy in the index's place.  This process must not have the index open."""
        self._call("replace with shrunk", None, "put the index's copy in its place")

    def _call(self, command: str, argument: Any, doing: str) -> None:
        frame = marshal.dumps((command, argument))
        for last_try in (False, True):
            answer = self._exchange(frame)
            if answer is not None:
                break
            self._reap()
            if not last_try:
                log.warning("the index writer process died; starting it again")
        if answer is None:
            raise DiskError(f"{doing}: the index writer process died twice")
        ok, kind, text = answer
        if not ok:
            raise _KINDS.get(kind, DiskError)(f"{doing} at {self._directory}: {text}")

    def _exchange(self, frame: bytes) -> tuple[bool, str, str] | None:
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            view = memoryview(_LENGTH.pack(len(frame)) + frame)
            while view:
                view = view[process.stdin.write(view) :]
            head = self._read(process, _LENGTH.size)
            reply = self._read(process, _LENGTH.unpack(head)[0]) if head else b""
        except (BrokenPipeError, ConnectionError):
            return None
        return marshal.loads(reply) if reply else None

    @staticmethod
    def _read(process: subprocess.Popen[bytes], length: int) -> bytes:
        assert process.stdout is not None
        pieces = b""
        while len(pieces) < length:
            piece = process.stdout.read(length - len(pieces))
            if not piece:
                return b""
            pieces += piece
        return pieces

    def _reap(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()

    def close(self) -> None:
        """End the child; it has nothing left to do."""
        self._reap()
