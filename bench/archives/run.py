"""``python -m bench archives``: fills a store with archives, ages it, reads it, and counts.

Invariant: bytes are counted in a store that is closed, swept and compacted; latency is measured
by turns without and with ageing, in an order that reverses every time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from bench import machine
from bench.archives import corpus
from bench.archives.blobs import Read, allocated, copy_in, inflated, verify
from bench.archives.corpus import Blob
from bench.archives.inside import streams
from bench.archives.measures import BYTES, GETS, HEADS, MEASURES
from bench.archives.service import AgedServer, home
from bench.http.load import Ask, Load, Timing
from bench.http.servers import nginx_module
from bench.result import Result, Sample
from bench.run import BenchError
from bench.work.base import Measure
from cafs.serve import nginx_program

_PORT = 24_450
_READ_SIZE = 50e6
"""Bytes of the droplet whose first byte is timed: the one that is nearest."""
_SMALL = 64 << 10
_ROUND_HEADS, _ROUND_GETS = 20_000, 2_000
_PATIENCE_S = 120.0

Progress = Callable[[str], None]


class ArchivesResult(Result):
    """A run over archives."""

    def measured(self) -> list[Measure]:
        """The measures that have samples, in their order."""
        have = {sample.measure for sample in self.samples}
        return [measure for key, measure in MEASURES.items() if key in have]

    def ratio(self, measure: Measure, to: str = "ext4", of: str = "cafs") -> float | None:
        """As for all results; a latency says how many times the quiet one it is."""
        pairs = [(s.values["ageing"], s.values["quiet"]) for s in self.of(measure)
                 if s.values.keys() >= {"ageing", "quiet"}]  # fmt: skip
        if pairs:
            return statistics.median(ageing / quiet for ageing, quiet in pairs)
        return super().ratio(measure, to, of)

    def note(self, key: str, repetition: int = 0, **values: float) -> None:
        """Add a sample, or further sides to it."""
        for sample in self.samples:
            if (sample.measure, sample.repetition) == (key, repetition):
                break
        else:
            sample = Sample(key, repetition)
            self.samples.append(sample)
        sample.values |= values
        sample.order += list(values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes beside the common options."""
    # Without defaults: the common options of the same names stand before the command.
    parser.add_argument("--quick", action="store_true", default=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=argparse.SUPPRESS, metavar="OUT")
    parser.add_argument("--repeat", type=int, default=argparse.SUPPRESS, metavar="N")
    parser.add_argument("--dir", type=Path, default=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--corpus", action="store_true", help="only build the archives")
    parser.add_argument("--main-job", action="store_true", help="age, kill, verify bit for bit")
    parser.add_argument("--kills", type=int, default=4, help="how often (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the store for a closer look")


def run(
    directory: Path,
    *,
    quick: bool,
    repetitions: int | None,
    seed: int,
    progress: Progress,
    save: Callable[[Result], None],
) -> ArchivesResult:
    """Measure in *directory*, and return the result; builds the corpus if there is none.

    Calls *save* after each part, so that a failure does not cost those before it.

    Raises:
        BenchError: not root.
        CorpusError: the corpus could not be built.
        LoadError, UnlikeError: a wrong answer, or other bytes than were put in.
        SideError: the service could not be started or stopped, or ageing failed.
    """
    if os.geteuid() != 0:
        raise BenchError("dropping the kernel's caches needs root: run the benchmarks as root")
    root = directory / "archives"
    blobs = corpus.build(root, quick=quick)
    result = ArchivesResult(
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        quick=quick,
        machine=machine.describe(directory),
        versions=machine.versions() | programs(),
        commit=machine.commit(),
        corpus={"archives": True, "parts": described(blobs)},
    )
    load, module = Load(directory / "bin"), nginx_module(directory / "bin")
    rounds = repetitions or (3 if quick else 7)

    def saved() -> None:
        result.machine["load_after"] = os.getloadavg()[0]
        save(result)

    server = AgedServer(home(directory, "stored"), load, module, _PORT)
    try:
        server.prepare()
        server.start()
        _stored(result, server, root, blobs, progress)
        saved()
        _reads(result, server, root, blobs, rounds, progress)
        saved()
    finally:
        server.stop()
        shutil.rmtree(server.home, ignore_errors=True)
    server = AgedServer(home(directory, "latency"), load, module, _PORT)
    try:
        server.prepare()
        server.start()
        _latency(result, server, root, blobs, rounds, seed, progress)
        saved()
    finally:
        server.stop()
        shutil.rmtree(server.home, ignore_errors=True)
    return result


def programs() -> dict[str, str]:
    """The programs that took part."""
    said = subprocess.run(["gzip", "--version"], capture_output=True, text=True, check=False)
    return {"nginx": nginx_program.find().version, "gzip": said.stdout.split("\n")[0].split()[-1]}


def described(blobs: list[Blob]) -> dict[str, dict[str, int]]:
    """How many of each type, and their bytes."""
    parts: dict[str, dict[str, int]] = {}
    for blob in blobs:
        part = parts.setdefault(blob.type, {"files": 0, "bytes": 0})
        part["files"] += 1
        part["bytes"] += blob.size
    return parts


def _stored(
    result: ArchivesResult, server: AgedServer, root: Path, blobs: list[Blob], progress: Progress
) -> None:
    """Type after type into one store, each aged before the next comes."""
    there: list[Blob] = []
    for kind in BYTES:
        more = [blob for blob in blobs if blob.type == kind]
        there += more
        progress(f"{kind}: putting {len(more)} in")
        copy_in(root, more, server.root)
        before = float(allocated(root, there))
        server.wait_until_hashed()
        server.give_back()
        result.note(f"plain_{kind}", ext4=before, cafs=float(server.stored_bytes()))
        progress(f"{kind}: taking apart")
        spent = server.age_offline()
        if kind == "droplets":
            result.note("apart", cafs=sum(blob.size for blob in more) / 1e6 / spent.cpu_s)
            result.note("apart_inflated", cafs=inflated(root, more) / 1e6 / spent.cpu_s)
        server.give_back()
        result.note(f"aged_{kind}", ext4=before, cafs=float(server.stored_bytes()))
        server.start()
    made = server.held().streams
    for engine, count in streams(root, there).items():
        if count:
            result.note(f"share_{engine}", cafs=made.get(engine, 0) / count)
    progress("reading everything back")
    for blob in there:
        verify(blob, server.read(blob, corpus.source(root, blob)), "through the mount")


def _reads(
    result: ArchivesResult,
    server: AgedServer,
    root: Path,
    blobs: list[Blob],
    rounds: int,
    progress: Progress,
) -> None:
    """First bytes, and what a core rebuilds."""
    droplets = [blob for blob in blobs if blob.type == "droplets"]
    one = min(droplets, key=lambda blob: abs(blob.size - _READ_SIZE))
    for number in range(rounds):
        for way in ("http", "mount"):
            progress(f"first byte: {way} {number + 1}/{rounds}")
            for state in ("cold", "warm"):
                if state == "cold":
                    server.forget()
                read = (server.get if way == "http" else server.read)(one)
                verify(one, read, way)
                _note_read(result, f"{way}_{state}", number, read)
    server.forget()
    used = server.usage().cpu_s
    some = droplets[:: max(1, len(droplets) // 8)]
    progress(f"rebuilding {len(some)} droplets")
    for blob in some:
        verify(blob, server.get(blob), "over HTTP")
    used = server.usage().cpu_s - used
    result.note("rebuild", cafs=sum(blob.size for blob in some) / 1e6 / used)
    result.note("rebuild_inflated", cafs=inflated(root, some) / 1e6 / used)


def _note_read(result: ArchivesResult, key: str, number: int, read: Read) -> None:
    result.note(f"first_{key}", number, cafs=read.first_byte_s)
    result.note(f"whole_{key}", number, cafs=read.seconds)


def _latency(
    result: ArchivesResult,
    server: AgedServer,
    root: Path,
    blobs: list[Blob],
    rounds: int,
    seed: int,
    progress: Progress,
) -> None:
    """HEAD and GET of small blobs, by turns without and with archives being taken apart."""
    random = Random(f"{seed} latency")
    small = [f"cc-resources/app_bits_cache/xx/{n}" for n in range(500)]
    (server.root / small[0]).parent.mkdir(parents=True)
    for path in small:
        (server.root / path).write_bytes(random.randbytes(_SMALL))
    copy_in(root, [blob for blob in blobs if blob.type == "droplets"], server.root)
    server.wait_until_hashed()
    heads = [Ask("HEAD", path, 200) for path in random.choices(small, k=_ROUND_HEADS)]
    gets = [Ask("GET", path, 200) for path in random.choices(small, k=_ROUND_GETS)]
    server.ask(heads)
    server.ask(gets)
    for number in range(rounds):
        for side in ("quiet", "ageing") if number % 2 == 0 else ("ageing", "quiet"):
            progress(f"latency: {side} {number + 1}/{rounds}")
            with _ageing(server) if side == "ageing" else nullcontext():
                for key, asks in ((HEADS, heads), (GETS, gets)):
                    _note_timing(result, key, number, side, server.ask(asks))


@contextmanager
def _ageing(server: AgedServer) -> Iterator[None]:
    """Within, archives are being taken apart."""
    process = server.age_now()
    try:
        end = time.monotonic() + _PATIENCE_S
        while not server.is_ageing():
            if process.poll() is not None:
                raise BenchError("all was taken apart before the last round: give fewer --repeat")
            if time.monotonic() > end:
                raise BenchError(f"ageing did not begin within {_PATIENCE_S:.0f} s")
        yield
        if process.poll() is not None:
            raise BenchError("all was taken apart before the round was over")
    finally:
        server.stop_ageing(process)


def _note_timing(result: ArchivesResult, key: str, number: int, side: str, timing: Timing) -> None:
    result.note(f"{key}.p50", number, **{side: timing.p50_s * 1e6})
    result.note(f"{key}.p99", number, **{side: timing.p99_s * 1e6})
