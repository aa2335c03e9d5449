"""The batches of one stream that are under way: at most two, whose results come in order.

One is cut while the other is stored.  Invariant: whoever feeds hears of each batch once, in
order; if one cannot be stored, neither is any that was under way behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cafs.blobs import recipe
from cafs.blobs.feeder import Feeder
from cafs.blobs.stream import Batch, Fed, IngestStream

DEPTH = 2

Done = Callable[[Fed | None, Exception | None], None]


class _UnderWay:
    __slots__ = ("batch", "done", "error", "fed")

    def __init__(self, batch: Batch, done: Done) -> None:
        self.batch = batch
        self.done = done
        self.fed: Fed | None = None
        self.error: Exception | None = None

    @property
    def over(self) -> bool:
        return self.fed is not None or self.error is not None


class Flow:
    """Feeds one stream.  Belongs to the event loop."""

    def __init__(self, feeder: Feeder, stream: IngestStream) -> None:
        self.stream = stream
        self._feeder = feeder
        self._under_way: deque[_UnderWay] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    @property
    def full(self) -> bool:
        """Whether nothing may be fed now."""
        ways = self._under_way
        return len(ways) >= DEPTH or any(each.error or each.batch.final for each in ways)

    def feed(self, buffers: list[bytes], final: bool, done: Done) -> None:
        """Cut and store *buffers*, soon; then *done* is called.  Not while this is full.

        If it could not be done the stream is as before, and the same bytes may be fed again.
        """
        each = _UnderWay(Batch(self.stream, buffers, final), done)
        self._under_way.append(each)

        def finished(fed: Fed | None, error: Exception | None) -> None:
            each.fed, each.error = fed, error
            self._deliver()

        self._feeder.feed(each.batch, finished)

    def _deliver(self) -> None:
        while self._under_way and self._under_way[0].fed is not None:
            each = self._under_way.popleft()
            each.done(each.fed, None)
        if self._under_way and all(each.over for each in self._under_way):
            self._fail()

    def _fail(self) -> None:
        failed = list(self._under_way)
        self._under_way.clear()
        error = failed[0].error
        self.stream.back_to_before(failed[0].batch)
        # The last one first: each is put before what waits.
        for each in reversed(failed):
            if each.fed is not None:
                self._feeder.unpin(recipe.chunk_refs(each.fed.parts))
            each.done(None, error)
