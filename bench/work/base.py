"""What a workload is: something done to each side in turn, which yields named measures.

Invariant: only what is handed to ``take`` is measured; everything else in a workload prepares.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar, Literal, NamedTuple, TypeAlias, TypeVar

from bench.client import Answer, Client
from bench.sides import Side

Unit = Literal["s", "us", "1/s", "MB/s", "B", "B/blob", "MiB", "share", "files"]
"""``share`` is a part of something named in the title; 1 is all of it."""

T = TypeVar("T")


class Target(NamedTuple):
    """What cafs is to reach."""

    of: Literal["ratio", "value"]
    """``ratio``: to ext4 in the same run.  ``value``: cafs alone."""
    bound: Literal["at least", "at most"]
    limit: float

    def met(self, number: float) -> bool:
        """Whether *number* reaches it."""
        return number >= self.limit if self.bound == "at least" else number <= self.limit


class Measure(NamedTuple):
    """One number that a workload yields."""

    key: str
    title: str
    unit: Unit
    target: Target | None = None

    @property
    def more_is_better(self) -> bool:
        """Whether a greater number is the better one."""
        return self.unit in ("1/s", "MB/s")


Action: TypeAlias = Callable[[], Answer | float | None]
Take: TypeAlias = Callable[[str, Action], None]
"""``take(key, action)`` runs the action and records the measure *key*: from the client's
answer, from the number it returns, or, for None, the seconds that it took."""


@dataclass(frozen=True)
class Context:
    """What workloads share."""

    corpus: Path
    scratch: Path
    """In memory, so that what is read from it or copied to it costs each side the same."""
    client: Client
    seed: int
    quick: bool
    files: int | None
    """How many files the memory measurement makes; None for its own number."""

    def pick(self, quick: T, full: T) -> T:
        """One of two sizes."""
        return quick if self.quick else full

    def random(self, *what: object) -> Random:
        """A generator that depends on the seed and on what it is for, and on nothing else."""
        return Random(f"{self.seed} {what}")

    @property
    def tree(self) -> Path:
        """A real tree to copy: 1,500 files, or 14,000."""
        return self.corpus / "tree" / self.pick("python-a/sympy", "python-a")


class Workload(ABC):
    """One thing that is done to every side."""

    name: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]
    floor: ClassVar[bool] = False
    """Whether pyfuse3 itself is what limits it, so that the empty filesystem takes part."""
    repeats: ClassVar[bool] = True
    """False for what comes out the same each time."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def setup(self, side: Side) -> None:  # noqa: B027 (most need none)
        """Before the first repetition on *side*, which is fresh."""

    @abstractmethod
    def run(self, side: Side, repetition: int, take: Take) -> None:
        """One repetition; must leave *side* fit for the next one."""


def copy(source: Path, target: Path) -> None:
    """``cp -a``: *source* appears as *target*."""
    subprocess.run(["cp", "-a", "-T", str(source), str(target)], check=True)


def remove(path: Path) -> None:
    """``rm -rf``."""
    subprocess.run(["rm", "-rf", str(path)], check=True)


def quiet(*command: str) -> None:
    """Run a command whose output nobody wants."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def read_all(path: Path) -> None:
    """Bring everything below *path* into the page cache."""
    quiet("find", str(path), "-type", "f", "-exec", "cat", "--", "{}", "+")
