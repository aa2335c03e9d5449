"""Time, passed in: whoever needs it takes a :class:`Clock`, so that tests own it.

Invariant: no other module of cafs asks the operating system what time it is where the answer
is stored, compared or waited for.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two ways to look at time."""

    def now_ns(self) -> int:
        """Wall-clock time in nanoseconds since 1970; may jump when somebody sets the clock."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back, so use it for durations."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        """Wall-clock time in nanoseconds since 1970."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()
