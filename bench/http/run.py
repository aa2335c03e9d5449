"""``python -m bench http``: runs the workloads on both sides by turns, and gathers the samples.

Invariant: the sides take turns within each repetition, in an order that reverses every time, so
that whatever else the machine does falls on both alike.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from bench import machine
from bench.http.load import Load, Timing
from bench.http.measures import MEASURES
from bench.http.servers import CafsServer, Server, nginx_module
from bench.http.workloads import WORKLOADS, Context, Take, Workload
from bench.result import Daemon, Result, Sample
from bench.run import BenchError, choose
from bench.work.base import Measure
from cafs.serve import nginx_program

FULL_KEYS, QUICK_KEYS = 1_000_000, 50_000
_FIRST_PORT = 24_430
_SCRATCH_BYTES = 1 << 30

Progress = Callable[[str], None]


class HttpResult(Result):
    """A run over HTTP."""

    def measured(self) -> list[Measure]:
        """The measures that have samples, in their order."""
        have = {sample.measure for sample in self.samples}
        return [measure for key, measure in MEASURES.items() if key in have]


def is_http(result: Result) -> bool:
    """Whether what was loaded as some result is one over HTTP, with measures of its own."""
    return "keys" in result.corpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes beside the common options."""
    names = ", ".join(workload.name for workload in WORKLOADS)
    # Without defaults: the common options of the same names stand before the command.
    parser.add_argument(
        "--only", action="append", default=argparse.SUPPRESS, metavar="NAME", help=f"one of {names}"
    )
    parser.add_argument("--quick", action="store_true", default=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=argparse.SUPPRESS, metavar="OUT")
    parser.add_argument("--repeat", type=int, default=argparse.SUPPRESS, metavar="N")
    parser.add_argument("--dir", type=Path, default=argparse.SUPPRESS)
    parser.add_argument(
        "--keys", type=int, metavar="N", help="blobs whose existence is asked (default: 1,000,000)"
    )


def run(
    directory: Path,
    *,
    only: Sequence[str],
    quick: bool,
    repetitions: int | None,
    seed: int,
    keys: int | None,
    progress: Progress,
    save: Callable[[Result], None],
) -> HttpResult:
    """Run the workloads *only* names, or all, in *directory*, and return the result.

    Calls *save* after each workload, so that a failure does not cost those before it.

    Raises:
        BenchError: not root, or an unknown name.
        LoadError: a server gave a wrong answer.
        SideError: a server could not be started or stopped.
    """
    chosen = choose(WORKLOADS, only)
    if shutil.disk_usage("/dev/shm").free < _SCRATCH_BYTES:
        raise BenchError("the benchmarks need 1 GiB of free room in /dev/shm")
    directory.mkdir(parents=True, exist_ok=True)
    number = keys or (QUICK_KEYS if quick else FULL_KEYS)
    result = HttpResult(
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        quick=quick,
        machine=machine.describe(directory),
        versions=machine.versions() | {"nginx": nginx_program.find().version},
        commit=machine.commit(),
        corpus={"keys": number},
    )
    load, module = Load(directory / "bin"), nginx_module(directory / "bin")
    with tempfile.TemporaryDirectory(prefix="cafs-bench-", dir="/dev/shm") as scratch:
        context = Context(Path(scratch), seed, quick, number)
        for kind in chosen:
            homes = directory / "http" / kind.name
            sides = [
                Server(homes / "ext4", load, module, _FIRST_PORT),
                CafsServer(homes / "cafs", load, module, _FIRST_PORT + 10),
            ]
            count = repetitions or (2 if quick else 5)
            result.samples += take_turns(kind(context), sides, count, progress)
            result.machine["load_after"] = os.getloadavg()[0]
            save(result)
    return result


def take_turns(
    workload: Workload, sides: Sequence[Server], repetitions: int, progress: Progress
) -> list[Sample]:
    """Run one workload on both sides, and leave nothing of it behind."""
    samples: dict[tuple[str, int], Sample] = {}
    with ExitStack() as stack:
        for side in sides:
            stack.callback(shutil.rmtree, side.home, ignore_errors=True)
            stack.callback(side.stop)
            progress(f"{workload.name}: preparing {side.name}")
            side.prepare()
            side.start()
            workload.prepare(side)
        for repetition in range(repetitions):
            turns = sides if repetition % 2 == 0 else sides[::-1]
            for side in turns:
                progress(f"{workload.name}: {side.name} {repetition + 1}/{repetitions}")
                # What another side left to be written must not fall on this one.
                os.sync()
                side.start()
                workload.run(side, repetition, _taker(side, repetition, samples))
    return list(samples.values())


def _taker(side: Server, repetition: int, samples: dict[tuple[str, int], Sample]) -> Take:
    def note(key: str, value: float) -> Sample:
        sample = samples.setdefault((key, repetition), Sample(key, repetition))
        sample.values[side.name] = value
        if side.name not in sample.order:
            sample.order.append(side.name)
        return sample

    def take(key: str, action: Callable[[], Timing | float]) -> None:
        # The server may be stopped and started in between: then what it took is not known.
        before = side.usage()
        answer = action()
        after = side.usage()
        cpu_s = after.cpu_s - before.cpu_s
        if not isinstance(answer, Timing):
            note(key, answer)
            return
        speed = answer.bytes / 1e6 if MEASURES[key].unit == "MB/s" else answer.operations
        sample = note(key, speed / answer.seconds)
        if side.name == "cafs":
            sample.daemon = Daemon(cpu_s, answer.seconds, after.rss_bytes, after.pss_bytes)
        note(f"{key}.p50", answer.p50_s * 1e6)
        note(f"{key}.p99", answer.p99_s * 1e6)
        note(f"{key}.cpu", cpu_s / answer.operations * 1e6)

    return take
