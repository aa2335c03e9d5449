"""A disk on which any one change can be made to fail.

It is the real Disk, on a real directory: a call either fails as declared or does what it always
does.  Invariant: calls are counted in the order in which they were made, from 1, so that a test
can run the same work again and again with the next call failing.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cafs.durable import Disk
from cafs.errors import from_os_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@dataclass(frozen=True)
class Fault:
    """One declared fault."""

    at: int
    """Which call fails: the first is 1."""
    errno: int = errno.EIO
    call: str | None = None
    """Count only calls of this method; None counts all."""
    sticky: bool = False
    """Whether every such call from then on fails too, until heal()."""


class FaultyDisk(Disk):
    """A Disk with declared faults.  Only calls that change something count and can fail.

    A write that fails has written the first half of its bytes.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        super().__init__()
        self._faults = list(faults)
        self._healed = False
        self._fired: set[Fault] = set()
        self._lock = threading.Lock()
        self._counts: Counter[str | None] = Counter()
        self.calls: list[str] = []
        """What was called, in order, with the path: ``"rename /a/b"``."""
        self.failed: list[str] = []
        """Those of them that failed as declared."""

    @property
    def all_fired(self) -> bool:
        """Whether every declared fault has happened; a test that ends without has shown nothing."""
        return self._fired == set(self._faults)

    def heal(self) -> None:
        """The disk is well again: nothing fails any more."""
        self._healed = True

    def _due(self, call: str, path: object) -> OSError | None:
        """Count one call; the error it is to fail with."""
        with self._lock:
            self.calls.append(f"{call} {path}")
            self._counts[call] += 1
            self._counts[None] += 1
            if self._healed:
                return None
            for fault in self._faults:
                if fault.call not in (None, call):
                    continue
                count = self._counts[fault.call]
                if count == fault.at or (fault.sticky and count > fault.at):
                    self._fired.add(fault)
                    self.failed.append(self.calls[-1])
                    return OSError(fault.errno, os.strerror(fault.errno))
        return None

    def _step(self, call: str, path: object) -> None:
        error = self._due(call, path)
        if error is not None:
            raise from_os_error(error, f"{call} {path}") from error

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> int:
        if flags & (os.O_CREAT | os.O_TRUNC):
            self._step("open", path)
        return super().open(path, flags, mode)

    def pwrite_all(self, fd: int, buffers: Sequence[ReadableBuffer], offset: int) -> None:
        error = self._due("pwrite_all", self._name(fd))
        if error is not None:
            data = b"".join(bytes(buffer) for buffer in buffers)
            super().pwrite_all(fd, [data[: len(data) // 2]], offset)
            raise from_os_error(error, f"write to {self._name(fd)}") from error
        super().pwrite_all(fd, buffers, offset)

    def truncate(self, fd: int, length: int) -> None:
        self._step("truncate", self._name(fd))
        super().truncate(fd, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._step("punch", self._name(fd))
        super().punch(fd, offset, length)

    def sync_data(self, fd: int) -> None:
        self._step("sync_data", self._name(fd))
        super().sync_data(fd)

    def sync_file(self, fd: int) -> None:
        self._step("sync_file", self._name(fd))
        super().sync_file(fd)

    def rename(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        self._step("rename", dst)
        super().rename(src, dst)

    def unlink(self, path: str | os.PathLike[str]) -> None:
        self._step("unlink", path)
        super().unlink(path)
