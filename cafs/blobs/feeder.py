"""Between drafts and workers: small files go to a worker many at a time.

Handing one 4 KiB file to a thread costs more than hashing it, and each time the thread takes
the interpreter lock the event loop waits.  So what is small gathers until it is a batch, or
until somebody waits for it; the periodic commit is the last who does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from cafs import priority
from cafs.blobs.digests import Digests
from cafs.blobs.ingest import Ingest
from cafs.blobs.stream import Batch, Fed, IngestStream, feed_all
from cafs.types import ChunkNo
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
        self._waiting: list[Batch] = []
        self._waiters: list[Done] = []
        self._bytes = 0
        self._waiting_for_digests = 0
        self.fed_at = -math.inf
        """When the last batch came, by trio's clock."""

    def feed(self, batch: Batch, done: Done) -> None:
        """Cut and store a batch in a worker; small ones may wait until flush() or for others."""
        self.fed_at = trio.current_time()
        if batch.size > SMALL or batch.stream.aside:
            # Nobody has to wait for the name of the whole.
            self._hash_aside(batch)
            self._submit([batch], [done])
            return
        self._waiting.append(batch)
        self._waiters.append(done)
        self._bytes += batch.size
        if len(self._waiting) >= BATCH_COUNT or self._bytes >= BATCH_BYTES:
            self.flush()

    def unpin(self, numbers: Sequence[ChunkNo]) -> None:
        """Let go of chunks that a batch has stored and nobody will use."""
        self._ingest.chunks.unpin(numbers)

    def _write_back(self) -> None:
        if self._writing_back or not self._ingest.chunks.much_unsynced:
            return
        self._writing_back = True

        def written(_result: None, _error: Exception | None) -> None:
            self._writing_back = False

        self._syncer.submit(self._ingest.chunks.write_back, written)

    def _hash_aside(self, batch: Batch) -> None:
        stream = batch.stream
        if not stream.whole:
            return
        if self._lag + batch.size > LAG_MAX:
            # The disk is faster than SHA-256: read it back for that when there is time.
            stream.whole = False
            return
        stream.aside = True
        self._lag += batch.size

        def hashed(_result: None, _error: Exception | None) -> None:
            self._lag -= batch.size

        self._aside.submit(lambda: stream.hash(batch.buffers, batch.start, self.may_wait), hashed)

    def may_wait(self) -> bool:
        """Whether hashing may wait until a processor has nothing else to do.  Any thread."""
        return self._waiting_for_digests == 0 and priority.may_idle()

    @contextmanager
    def in_haste(self) -> Iterator[None]:
        """Within the block somebody waits for digests: hashing stands back for nobody."""
        self._waiting_for_digests += 1
        try:
            yield
        finally:
            self._waiting_for_digests -= 1

    def digests_later(
        self, stream: IngestStream, done: Callable[[Digests | None, Exception | None], None]
    ) -> None:
        """Call *done* with the digests of a stream that is hashed aside, once they are there."""
        self._aside.submit(stream.digests, done)

    def flush(self) -> None:
        """Let nothing wait any longer."""
        if self._waiting:
            batches, waiters = self._waiting, self._waiters
            self._waiting, self._waiters, self._bytes = [], [], 0
            self._submit(batches, waiters)

    def _submit(self, batches: list[Batch], waiters: list[Done]) -> None:
        def finished(results: list[Fed] | None, error: Exception | None) -> None:
            self._write_back()
            for position, done in enumerate(waiters):
                done(results[position] if results is not None else None, error)

        self._workers.submit(lambda: feed_all(self._ingest, batches), finished)
