"""Between drafts and workers: small files go to a worker many at a time.

Handing one 4 KiB file to a thread costs more than hashing it, and each time the thread takes
the interpreter lock the event loop waits.  So what is small gathers until it is a batch, or
until somebody waits for it; the periodic commit is the last who does.
"""

from __future__ import annotations

from collections.abc import Callable

from cafs.blobs.ingest import Fed, Ingest, IngestStream, feed_all
from cafs.workers import Workers

SMALL = 64 << 10
"""Bytes up to which a feed waits for others."""
BATCH_COUNT = 64
BATCH_BYTES = 1 << 20

Done = Callable[[Fed | None, Exception | None], None]


class Feeder:
    """Gathers feeds.  Belongs to the event loop."""

    def __init__(self, ingest: Ingest, workers: Workers) -> None:
        self._ingest = ingest
        self._workers = workers
        self._waiting: list[tuple[IngestStream, list[bytes], bool]] = []
        self._waiters: list[Done] = []
        self._bytes = 0

    def feed(self, stream: IngestStream, buffers: list[bytes], final: bool, done: Done) -> None:
        """Feed a stream in a worker; small ones may wait until flush() or until a batch is full."""
        size = sum(map(len, buffers))
        if size > SMALL:
            self._submit([(stream, buffers, final)], [done])
            return
        self._waiting.append((stream, buffers, final))
        self._waiters.append(done)
        self._bytes += size
        if len(self._waiting) >= BATCH_COUNT or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Let nothing wait any longer."""
        if self._waiting:
            feeds, waiters = self._waiting, self._waiters
            self._waiting, self._waiters, self._bytes = [], [], 0
            self._submit(feeds, waiters)

    def _submit(
        self, feeds: list[tuple[IngestStream, list[bytes], bool]], waiters: list[Done]
    ) -> None:
        def finished(results: list[Fed] | None, error: Exception | None) -> None:
            for position, done in enumerate(waiters):
                done(results[position] if results is not None else None, error)

        self._workers.submit(lambda: feed_all(self._ingest, feeds), finished)
