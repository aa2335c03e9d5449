"""Between drafts and workers: small files go to a worker many at a time.

Handing one 4 KiB file to a thread costs more than hashing it, and each time the thread takes
the interpreter lock the event loop waits.  So what is small gathers until it is a batch, or
until somebody waits for it; the periodic commit is the last who does.
"""

from __future__ import annotations

from collections.abc import Callable

from cafs.blobs.blobs import Digests
from cafs.blobs.ingest import Fed, Ingest, IngestStream, feed_all, join
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

    def __init__(self, ingest: Ingest, workers: Workers, aside: Workers, syncer: Workers) -> None:
        """*aside* is one thread, so that the bytes of a stream are hashed in order."""
        self._syncer = syncer
        self._writing_back = False
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
            self._feed_large(stream, buffers, size, final, done)
            return
        self._waiting.append((stream, buffers, final))
        self._waiters.append(done)
        self._bytes += size
        if len(self._waiting) >= BATCH_COUNT or self._bytes >= BATCH_BYTES:
            self.flush()

    def _feed_large(
        self, stream: IngestStream, buffers: list[bytes], size: int, final: bool, done: Done
    ) -> None:
        """Cut in a worker, and hash the whole aside: nobody has to wait for a name."""
        self._hash_aside(stream, buffers, size)

        def feed() -> Fed:
            given = stream.slice(join(buffers), final)
            return stream.advance(given, size, self._ingest.cut([given])[0], None)

        def fed(result: Fed | None, error: Exception | None) -> None:
            self._write_back()
            done(result, error)

        self._workers.submit(feed, fed)

    def _write_back(self) -> None:
        if self._writing_back or not self._ingest.chunks.much_unsynced:
            return
        self._writing_back = True

        def written(_result: None, _error: Exception | None) -> None:
            self._writing_back = False

        self._syncer.submit(self._ingest.chunks.write_back, written)

    def _hash_aside(self, stream: IngestStream, buffers: list[bytes], size: int) -> None:
        if not stream.whole:
            return
        if self._lag + size > LAG_MAX:
            # The disk is faster than SHA-256: read it back for that when there is time.
            stream.whole = False
            return
        stream.aside = True
        self._lag += size
        start = stream.position

        def hashed(_result: None, _error: Exception | None) -> None:
            self._lag -= size

        self._aside.submit(lambda: stream.hash(buffers, start), hashed)

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
