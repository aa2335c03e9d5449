"""A result: samples with their partners, how they are kept as JSON, and what follows from them.

Invariant: everything that is shown is computed from the samples in the file, never kept twice.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.work import MEASURES
from bench.work.base import Measure


class ResultError(Exception):
    """A file is not a result."""


@dataclass
class Daemon:
    """What the daemon took during one sample."""

    cpu_s: float
    """CPU seconds of the daemon and its children while the sample was taken."""
    wall_s: float
    rss_bytes: int
    """At the end of the sample."""
    pss_bytes: int


@dataclass
class Sample:
    """One measure in one repetition, on every side that took part."""

    measure: str
    repetition: int
    values: dict[str, float] = field(default_factory=dict)
    """Side -> value, in the measure's unit."""
    order: list[str] = field(default_factory=list)
    """The sides in the order in which they ran."""
    daemon: Daemon | None = None


class Spread(NamedTuple):
    """Median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass
class Result:
    """A whole run."""

    command: str
    started: str
    """UTC, ISO 8601."""
    seed: int
    quick: bool
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    corpus: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what :meth:`save` wrote.

        Raises:
            ResultError: there is no such file, or it is no result.
        """
        try:
            raw = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ResultError(
                f"{path} is not a result of python -m bench --json: {error}"
            ) from None
        samples = [
            Sample(**{**s, "daemon": Daemon(**s["daemon"]) if s["daemon"] else None})
            for s in raw.pop("samples")
        ]
        return cls(**raw, samples=samples)

    def measured(self) -> list[Measure]:
        """The measures that have samples, in the order of the workloads."""
        have = {sample.measure for sample in self.samples}
        return [measure for key, measure in MEASURES.items() if key in have]

    def of(self, measure: Measure) -> list[Sample]:
        """All samples of one measure."""
        return [sample for sample in self.samples if sample.measure == measure.key]

    def spread(self, measure: Measure, side: str) -> Spread | None:
        """Median and quartiles on one side; None if it took no part."""
        values = [s.values[side] for s in self.of(measure) if side in s.values]
        return Spread.of(values) if values else None

    def ratio(self, measure: Measure, to: str = "ext4", of: str = "cafs") -> float | None:
        """One side against another: the median over the pairs.

        Times and rates give a ratio of speeds (1: as fast, 2: twice as fast), bytes a ratio of
        bytes (0.5: half of them).
        """
        ratios = []
        for sample in self.of(measure):
            mine, other = sample.values.get(of), sample.values.get(to)
            if mine and other:
                ratios.append(other / mine if measure.unit in ("s", "us") else mine / other)
        return statistics.median(ratios) if ratios else None

    def met(self, measure: Measure) -> bool | None:
        """Whether the target is met; None without a target or without the numbers."""
        if measure.target is None:
            return None
        if measure.target.of == "ratio":
            number = self.ratio(measure)
        else:
            spread = self.spread(measure, "cafs")
            number = None if spread is None else spread.median
        return None if number is None else measure.target.met(number)
