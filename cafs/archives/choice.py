"""Which program makes an archive again, where the record of its engine names several.

A program that had made a few samples the same was once added to the record of the one before it,
and archives that it was proven with were recorded so, too.  Where the two differ, only the one
that was used makes the bytes.  Invariant: each program of a record is tried once at most.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

from cafs.archives.engine import Engine
from cafs.archives.engine_run import OtherBytesError

log = logging.getLogger(__name__)


class Programs(Protocol):
    """What there is for made parts with a number: see :class:`cafs.archives.engines.Engines`."""

    def rebuilder(self, number: int) -> Engine:
        """The first one to try.  Raises EngineError."""
        ...

    def others(self, number: int) -> Sequence[Engine]:
        """What else may have made them."""
        ...


class Choice:
    """The programs of one rebuild."""

    def __init__(self, programs: Programs) -> None:
        self._programs: Final = programs
        self._passed: dict[int, int] = {}
        """How many of those with a number have made other bytes."""

    def engine_of(self, number: int) -> Engine:
        """The engine for made parts with this number.  Raises EngineError."""
        passed = self._passed.get(number, 0)
        if not passed:
            return self._programs.rebuilder(number)
        return self._programs.others(number)[passed - 1]

    def goes_on(self, error: OtherBytesError) -> bool:
        """Whether to begin anew, with another program in the place of the one that failed."""
        passed = self._passed.get(error.number, 0)
        if passed >= len(self._programs.others(error.number)):
            return False
        self._passed[error.number] = passed + 1
        log.info("engine %d: %s; the next program of its record is tried", error.number, error)
        return True
