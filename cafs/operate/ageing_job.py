"""What a pass of ageing is told to do, and what it says afterwards.

Invariant: a report is bounded, however many archives there are and whatever became of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cafs.errors import CafsError

REASONS_MAX: Final = 30

OnProgress = Callable[[int, int], None]
"""Told how many bytes of how many are dealt with."""


@dataclass
class Report:
    """What one pass has done."""

    taken_apart_count: int = 0
    taken_apart_bytes: int = 0
    """Sizes of the archives."""
    gained_bytes: int = 0
    """Stored bytes that this saves, once swept; below 0 if it took more than it saved."""
    thawed_count: int = 0
    thawed_bytes: int = 0
    in_use_count: int = 0
    """Blobs that were used too recently, archives or not."""
    kept_newest_count: int = 0
    """Archives that stay plain as the newest of their directory."""
    left: Counter[str] = field(default_factory=Counter)
    """Archives that stay as they are, by the reason."""
    passed: Counter[str] = field(default_factory=Counter)
    """Other files below the path that was named, by the reason why nothing is done about them."""
    stopped: str = ""
    """Why the pass did not come to its end."""
    exit_code: int = 0
    """What a command that asked for the pass ends with."""

    def stop(self, why: str) -> None:
        """Somebody does not want it to come to its end."""
        self.stopped = why
        self.exit_code = CafsError("").meaning.exit_code

    def fields(self) -> dict[str, Any]:
        """As fields of an answer."""
        counted = {name: dict(getattr(self, name).most_common()) for name in ("left", "passed")}
        return vars(self) | counted


@dataclass
class Job:
    """What a pass is to do."""

    used_too: bool = False
    """Also what was used lately."""
    below: str | None = None
    """Only what lies at or below this path from the store's root, whatever was said of it
    before."""
    thaw: bool = False
    """Make plain again instead."""
    background: bool = False
    """Nobody asked for it: it gives way to a pass that somebody asks for."""
    on_progress: OnProgress = lambda _done, _total: None
    report: Report = field(default_factory=Report)


def count_reason(reasons: Counter[str], reason: str) -> None:
    """One more archive was left for *reason*; rare reasons are counted together."""
    if reason not in reasons and len(reasons) >= REASONS_MAX:
        reason = "another reason"
    reasons[reason] += 1
