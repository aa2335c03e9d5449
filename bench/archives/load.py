"""Readers that work against a service while its archives are taken apart, and believe nothing.

Invariant: a byte that is not the original's is never excused.  That a read fails is excused
only while the service was announced to be down, at some moment of that read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bench.archives import corpus
from bench.archives.blobs import Read, UnlikeError, verify
from bench.archives.corpus import Blob
from bench.archives.service import AgedServer

_THINKS = 2.0
"""For so many times as long as a read took its reader does nothing."""


@dataclass
class Seen:
    """What the readers saw; guarded by the lock of :class:`Readers`."""

    reads: int = 0
    bytes: int = 0
    cut_off: int = 0
    """Reads that failed while the service was down."""
    first_byte_s: float = 0.0
    """The longest wait for a first byte."""
    stall_s: float = 0.0
    """The longest that a read stood still ..."""
    stall_where: str = ""
    """... and what was read, and how."""
    failures: list[str] = field(default_factory=list)


class Readers:
    """Threads that read random blobs, by turns through the mount and over HTTP."""

    def __init__(self, root: Path, blobs: list[Blob], server: AgedServer, seed: int) -> None:
        self.seen = Seen()
        self._root = root
        self._blobs = blobs
        self._server = server
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._up.set()
        self._downs = 0
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._go, args=(Random(f"{seed} reader {n}"), n))
            for n in range(2)
        ]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        self._up.set()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Within, the service may be away."""
        with self._lock:
            self._downs += 1
        self._up.clear()
        try:
            yield
        finally:
            self._up.set()

    def _go(self, random: Random, turn: int) -> None:
        while not self._end.is_set():
            self._up.wait()
            turn += 1
            start = time.monotonic()
            self.read_one(random.choice(self._blobs), turn % 2 == 0)
            # One who does nothing but read leaves no time to whatever stands back for him.
            self._end.wait(_THINKS * (time.monotonic() - start))

    def read_one(self, blob: Blob, mounted: bool) -> None:
        """Read *blob* through the mount or over HTTP, and note what came of it."""
        with self._lock:
            before = self._downs
        like = corpus.source(self._root, blob)
        how = "through the mount" if mounted else "over HTTP"
        try:
            read = (self._server.read if mounted else self._server.get)(blob, like)
            verify(blob, read, how)
        except UnlikeError as error:
            with self._lock:
                self.seen.failures.append(str(error))
        except OSError as error:
            with self._lock:
                if self._downs == before and self._up.is_set():
                    self.seen.failures.append(f"{blob.path} {how}: {error}")
                else:
                    self.seen.cut_off += 1
        else:
            self._note(read, f"{blob.path} {how}, behind {read.stall_at:,} of {blob.size:,} bytes")

    def _note(self, read: Read, what: str) -> None:
        with self._lock:
            seen = self.seen
            seen.reads += 1
            seen.bytes += read.bytes
            seen.first_byte_s = max(seen.first_byte_s, read.first_byte_s)
            if read.stall_s > seen.stall_s:
                seen.stall_s, seen.stall_where = read.stall_s, what
