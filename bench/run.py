"""Runs workloads on all sides by turns, and gathers the samples.

Invariant: the sides take turns within each repetition, in an order that reverses every time, so
that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from bench import corpus, machine
from bench.client import Answer, Client
from bench.meter import Usage
from bench.result import Daemon, Result, Sample
from bench.sides import Cafs, Floor, Side
from bench.work import WORKLOADS
from bench.work.base import Action, Context, Measure, Take, Unit, Workload

Progress = Callable[[str], None]
_SCRATCH_BYTES = 1 << 30


class BenchError(Exception):
    """The run cannot be made; says why and what to do."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_W = TypeVar("_W", bound=_Named)


def choose(workloads: Sequence[_W], only: Sequence[str]) -> list[_W]:
    """The workloads that *only* names, or all.

    Raises BenchError when there is no such name, or this is not root.
    """
    if os.geteuid() != 0:
        raise BenchError("dropping the kernel's caches needs root: run the benchmarks as root")
    unknown = set(only) - {workload.name for workload in workloads}
    if unknown:
        names = ", ".join(workload.name for workload in workloads)
        raise BenchError(f"no workload {', '.join(sorted(unknown))}; there are: {names}")
    return [workload for workload in workloads if not only or workload.name in only]


def run(
    directory: Path,
    *,
    only: Sequence[str],
    quick: bool,
    repetitions: int | None,
    seed: int,
    files: int | None,
    progress: Progress,
    save: Callable[[Result], None],
) -> Result:
    """Run the workloads *only* names, or all, in *directory*, and return the result.

    Calls *save* after each workload, so that a failure does not cost those before it.

    Raises:
        BenchError: not root, or an unknown name.
        CorpusError: there is no corpus in the directory.
        SideError: a side could not be started or stopped.
    """
    chosen = choose(WORKLOADS, only)
    described = corpus.load(directory / "corpus")
    result = Result(
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        quick=quick,
        machine=machine.describe(directory),
        versions=machine.versions(),
        commit=machine.commit(),
        corpus=described,
    )
    with _alone(directory), _scratch() as scratch:
        context = Context(
            corpus=directory / "corpus",
            scratch=scratch,
            client=Client(directory / "bin"),
            seed=seed,
            quick=quick,
            files=files,
        )
        for kind in chosen:
            count = repetitions or (3 if quick else 5)
            workload = kind(context)
            homes = directory / "sides" / kind.name
            sides: list[Side] = [Side(homes / "ext4"), Cafs(homes / "cafs")]
            if kind.floor:
                sides.append(Floor(homes / "floor"))
            result.samples += take_turns(workload, sides, count if kind.repeats else 1, progress)
            result.machine["load_after"] = os.getloadavg()[0]
            save(result)
    return result


def take_turns(
    workload: Workload, sides: Sequence[Side], repetitions: int, progress: Progress
) -> list[Sample]:
    """Run one workload on all sides, and leave nothing of it behind."""
    samples: dict[tuple[str, int], Sample] = {}
    with ExitStack() as stack:
        for side in sides:
            stack.callback(shutil.rmtree, side.home, ignore_errors=True)
            progress(f"{workload.name}: preparing {side.name}")
            stack.callback(side.stop)
            side.fresh()
            workload.setup(side)
        for repetition in range(repetitions):
            turns = sides if repetition % 2 == 0 else sides[::-1]
            for side in turns:
                progress(f"{workload.name}: {side.name} {repetition + 1}/{repetitions}")
                # What another side left to be written must not fall on this one.
                os.sync()
                workload.run(side, repetition, _taker(workload, side, repetition, samples))
    return list(samples.values())


def _taker(
    workload: Workload, side: Side, repetition: int, samples: dict[tuple[str, int], Sample]
) -> Take:
    measures = {measure.key: measure for measure in workload.measures}

    def take(key: str, action: Action) -> None:
        measure = measures[key]
        before = side.usage()
        start = time.perf_counter()
        answer = action()
        wall_s = time.perf_counter() - start
        after = side.usage()
        sample = samples.setdefault((key, repetition), Sample(key, repetition))
        sample.values[side.name] = _value(answer, wall_s, measure)
        sample.order.append(side.name)
        if side.name == "cafs" and before and after:
            sample.daemon = _daemon(before, after, wall_s)

    return take


def _daemon(before: Usage, after: Usage, wall_s: float) -> Daemon:
    return Daemon(after.cpu_s - before.cpu_s, wall_s, after.rss_bytes, after.pss_bytes)


def _value(answer: Answer | float | None, wall_s: float, measure: Measure) -> float:
    if answer is None:
        return wall_s
    if isinstance(answer, Answer):
        of: dict[Unit, float] = {
            "s": answer.seconds,
            "1/s": answer.per_second,
            "MB/s": answer.mb_per_second,
        }
        return of[measure.unit]
    return answer


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError(f"another run is using {directory}; give another --dir") from None
        yield


@contextmanager
def _scratch() -> Iterator[Path]:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shutil.disk_usage(shared).free < _SCRATCH_BYTES:
        raise BenchError("the benchmarks need 1 GiB of free room in /dev/shm")
    with tempfile.TemporaryDirectory(prefix="cafs-bench-", dir=shared) as name:
        yield Path(name)
