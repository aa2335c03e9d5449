"""Between drafts and workers: small files go to a worker many at a time.

Handing one 4 KiB file to a thread costs more than hashing it, and each time the thread takes
the interpreter lock the event loop waits.  So what is small gathers until it is a batch, or
until somebody waits for it; the periodic commit is the last who does.
"""

from __future__ import annotations

from collections.abc import Callable

from cafs.blobs.blobs import Digests
from cafs.blobs.ingest import Cut, Fed, Ingest, IngestStream, feed_all, join
from cafs.workers import Workers

SMALL = 64 << 10
"""Bytes up to which a feed waits for others."""
BATCH_COUNT = 64
BATCH_BYTES = 1 << 20
LAG_MAX = 32 << 20
"""Bytes that may wait to be hashed."""

Done = Callable[[Fed | None, Exception | None], None]


class Feeder:
    """Gathers feeds.  Belongs to the event loop."""

    def __init__(self, ingest: Ingest, workers: Workers, aside: Workers) -> None:
        """*aside* is one thread, so that the bytes of a stream are hashed in order."""
        self._ingest = ingest
        self._workers = workers
        self._aside = aside
        self._lag = 0
        self._waiting: list[tuple[IngestStream, list[bytes], bool]] = []
        self._waiters: list[Done] = []
        self._bytes = 0

    def feed(self, stream: IngestStream, buffers: list[bytes], final: bool, done: Done) -> None:
        """Feed a stream in a worker; small ones may wait until flush() or until a batch is full."""
        size = sum(map(len, buffers))
        if size > SMALL or stream.aside:
            self._feed_large(stream, join(buffers), final, done)
            return
        self._waiting.append((stream, buffers, final))
        self._waiters.append(done)
        self._bytes += size
        if len(self._waiting) >= BATCH_COUNT or self._bytes >= BATCH_BYTES:
            self.flush()

    def _feed_large(self, stream: IngestStream, data: bytes, final: bool, done: Done) -> None:
        """Cut in a worker, and hash the whole aside: nobody has to wait for a name."""
        given = stream.slice(data, final)
        self._hash_aside(stream, data)

        def cut(cuts: list[Cut] | None, error: Exception | None) -> None:
            done(stream.advance(given, data, cuts[0], None) if cuts is not None else None, error)

        self._workers.submit(lambda: self._ingest.cut([given]), cut)

    def _hash_aside(self, stream: IngestStream, data: bytes) -> None:
        if not stream.whole:
            return
        if self._lag + len(data) > LAG_MAX:
            # The disk is faster than SHA-256: read it back for that when there is time.
            stream.whole = False
            return
        stream.aside = True
        self._lag += len(data)
        start = stream.position

        def hashed(_result: None, _error: Exception | None) -> None:
            self._lag -= len(data)

        self._aside.submit(lambda: stream.hash(data, start), hashed)

    def digests_later(
        self, stream: IngestStream, done: Callable[[Digests | None, Exception | None], None]
    ) -> None:
        """Call *done* with the digests of a stream that is hashed aside, once they are there."""
        self._aside.submit(stream.digests, done)

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
