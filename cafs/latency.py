"""How long those wait who are served now: what background work gives way to.

Owns short lists of recent times, one for each source: a late turn of the event loop, a request
over HTTP that needs no body, a read through the mount.  Any of them may say little by itself;
who gives way compares a source with itself.  Belongs to the event loop.  Invariant: bounded, and
quick enough to be told of every request.
"""

from __future__ import annotations

from collections import deque
from typing import Final

KEPT_MAX: Final = 512
"""Times of a source between two looks; the oldest go first."""

LOOP: Final = "loop"
HTTP: Final = "http"
READ: Final = "read"
SOURCES: Final = (LOOP, HTTP, READ)


class Latency:
    """The times of one store."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether somebody looks at them."""
        self.requests = 0
        """Requests of the mount and over HTTP so far, the common ones."""
        self._times: dict[str, deque[float]] = {
            source: deque(maxlen=KEPT_MAX) for source in SOURCES
        }

    def note(self, source: str, seconds: float) -> None:
        """Something of this source took so long."""
        if self.wanted:
            self._times[source].append(seconds)

    def take(self, source: str) -> list[float]:
        """The times since the last look."""
        times = self._times[source]
        found = list(times)
        times.clear()
        return found
