"""One rebuild of one blob that readers drive: what it has made, and who needs it.

Invariant: what goes on to its content has the place that it has in the blob, however often it was
begun anew, and the last byte only when the SHA-256 of all of it was right.  Belongs to the event
loop, but for :meth:`Run.sink`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from cafs.archives.cachefile import Identity
from cafs.archives.choice import Choice
from cafs.archives.growing import Growing
from cafs.archives.rebuild import Rebuild
from cafs.clock import Clock
from cafs.errors import CafsError, RebuildError
from cafs.types import BlobNo

SLOW_S: Final = 0.25
"""Who comes back after such a pause takes less than is made."""


class Run:
    """One rebuild of one blob, as far as it has come."""

    def __init__(
        self,
        blob: BlobNo,
        inner: BlobNo,
        identity: Identity,
        growing: Growing,
        choice: Choice,
        clock: Clock,
    ) -> None:
        self.blob = blob
        self.inner = inner
        self.growing = growing
        self.choice = choice
        self.waiting = 0
        """Readers that are in read()."""
        self.slow = False
        """Whether one of them has come back after a pause."""
        self.failed: CafsError | None = None
        self.rebuild: Rebuild | None = None
        self.engaged = False
        """Whether there is a rebuild, or one is about to be."""
        self.lock = trio.Lock()
        """Held by who takes a step, or ends it."""
        self.faults = 0
        """Of its engine."""
        self.whole = False
        self._clock = clock
        self._identity = identity
        self._sha256 = hashlib.sha256()
        self._seen = 0
        self._last_used = self._last_step = clock.monotonic()

    def begin(self, rebuild: Rebuild) -> None:
        """Go through it from its first byte on; what is there already is not kept twice."""
        self.rebuild = rebuild
        self._sha256 = hashlib.sha256()
        self._seen = 0

    def sink(self, data: bytes | memoryview) -> None:
        """Take the next verified bytes.  In a worker thread."""
        self._sha256.update(data)
        before, self._seen = self._seen, self._seen + len(data)
        if self._seen > self._identity.size:
            raise RebuildError(f"blob {self.blob} is rebuilt longer than it was")
        if self._seen == self._identity.size and self._sha256.digest() != self._identity.sha256:
            raise RebuildError(f"blob {self.blob} is rebuilt with another SHA-256 than it had")
        fresh = self.growing.position - before
        if fresh < len(data):
            self.growing.append(memoryview(data)[max(0, fresh) :])

    @property
    def complete(self) -> bool:
        """Whether all bytes were made."""
        return self.growing.position == self._identity.size

    @property
    def left(self) -> int:
        """Bytes that are still to be made, those included that are only made once more."""
        return self._identity.size - (self._seen if self.engaged else 0)

    @property
    def counts(self) -> bool:
        """Whether it has something that there cannot be any number of: an engine, or memory."""
        return self.engaged or self.growing.in_memory

    def idle_s(self) -> float:
        """For how long nobody has read from it."""
        return 0.0 if self.waiting else self._clock.monotonic() - self._last_used

    def spare_s(self) -> float:
        """For how long nobody has needed more of it than its file has."""
        if not self.growing.filed:
            return self.idle_s()
        return self._clock.monotonic() - self._last_step

    def stepped(self) -> None:
        """It was driven on."""
        self._last_step = self._clock.monotonic()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block somebody waits for it."""
        self.slow = self.slow or self.idle_s() >= SLOW_S
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
            self._last_used = self._clock.monotonic()
