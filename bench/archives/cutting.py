"""How inner blobs are best cut and compressed: ``python -m bench.archives.cutting CORPUS_DIR``.

Inflates real droplets, cuts them at tar members in several ways, deduplicates as a store would
and compresses with several levels of zstd.  CORPUS_DIR is what ``python -m bench archives
--corpus`` made.  Like bench.chunking it calls into cafs: what it compares no command can set up.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.archives import corpus
from bench.fetch import CorpusError
from cafs.archives.bytecode import varying
from cafs.blobs import codec
from cafs.blobs.chunker import KIB, ChunkParams, split

LEVELS = (1, 3, 6, 9)
GATHER_SIZES = (16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB)
_BATCH_BYTES = 4 << 20
_INDEX_PER_CHUNK = 120
"""Bytes of LMDB that a chunk takes, with the digest that finds it; see bench.chunking."""
_INDEX_PER_PART = 11


class Way(NamedTuple):
    """One way to cut."""

    name: str
    average: int = 64 * KIB
    tiny: int = 128
    """Members of so many bytes are gathered with the headers."""
    bytecode: bool = False
    """Whether a ``.pyc`` is cut behind its header and around the path that it names."""
    members: bool = True
    """Whether members are cut at all; False: content decides alone."""
    levels: tuple[int, ...] = (1,)
    """Of zstd, that are tried."""


WAYS = (
    Way("plain tar, content decides", members=False),
    Way("at members, tiny 128"),
    Way("at members, tiny 128, .pyc", bytecode=True, levels=LEVELS),
    Way("at members, tiny 512, .pyc", tiny=512, bytecode=True),
    Way("at members, tiny 2048, .pyc", tiny=2048, bytecode=True),
    Way("at members, tiny 128, .pyc, 16 KiB", average=16 * KIB, bytecode=True),
    Way("at members, tiny 128, .pyc, 128 KiB", average=128 * KIB, bytecode=True),
)


@dataclass
class Outcome:
    """All droplets cut one way.  Bytes, if not said."""

    way: Way
    droplets: int = 0
    before: int = 0
    inflated: int = 0
    chunks: int = 0
    parts: int = 0
    unique: int = 0
    gathered: int = 0
    packed: dict[int, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))
    """Level -> stored bytes of the deduplicated chunks, without what was gathered."""
    seconds: dict[int, float] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0.0))
    """Level -> processor time for them."""
    headers: dict[str, int] = field(default_factory=dict)
    """"size/level" -> stored bytes of what was gathered, in chunks of that size."""

    def total(self, level: int, size: int) -> int:
        """What the store takes, index included."""
        chunks = self.chunks + self.gathered // size
        index = chunks * _INDEX_PER_CHUNK + self.parts * _INDEX_PER_PART
        return self.packed[level] + self.headers[f"{size // KIB}/{level}"] + index


class Cutter:
    """Cuts droplets one way, and remembers the chunks it has seen."""

    def __init__(self, way: Way) -> None:
        self.outcome = Outcome(way)
        self._levels = way.levels
        low = way.average // 4
        self._params = ChunkParams(low, way.average, way.average * 4, True)
        self._seen: set[bytes] = set()
        self._new: list[memoryview] = []
        self._new_bytes = 0

    def add(self, packed_size: int, content: bytes) -> None:
        """Cut one inflated droplet."""
        outcome = self.outcome
        outcome.droplets += 1
        outcome.before += packed_size
        outcome.inflated += len(content)
        view = memoryview(content)
        gathered = bytearray()
        if self.outcome.way.members:
            for piece, together in self.pieces(view):
                outcome.parts += 1
                if together:
                    gathered += piece
                else:
                    self._chunks(piece)
        else:
            self._chunks(view)
        self._flush()
        outcome.gathered += len(gathered)
        self._gather(memoryview(bytes(gathered)))

    def pieces(self, view: memoryview) -> Iterator[tuple[memoryview, bool]]:
        """The content in order, each piece with whether it is gathered with the headers."""
        at = 0
        with tarfile.open(fileobj=io.BytesIO(view)) as opened:
            for member in opened:
                size = member.size if member.isreg() else 0
                start, end = member.offset_data, member.offset_data + size
                if size <= self.outcome.way.tiny:
                    continue
                yield view[at:start], True
                yield from self._member(view[start:end])
                at = end
        yield view[at:], True

    def _member(self, data: memoryview) -> Iterator[tuple[memoryview, bool]]:
        at = 0
        for start, end in varying(bytes(data)) if self.outcome.way.bytecode else ():
            yield data[at:start], start - at <= self.outcome.way.tiny
            yield data[start:end], True
            at = end
        yield data[at:], len(data) - at <= self.outcome.way.tiny

    def _chunks(self, data: memoryview) -> None:
        ends = split(data, self._params, final=True)
        self.outcome.parts += len(ends) - 1
        for start, end in itertools.pairwise([0, *ends]):
            piece = data[start:end]
            digest = hashlib.sha256(piece).digest()[:16]
            if digest not in self._seen:
                self._seen.add(digest)
                self.outcome.chunks += 1
                self.outcome.unique += len(piece)
                self._new.append(piece)
                self._new_bytes += len(piece)
                if self._new_bytes >= _BATCH_BYTES:
                    self._flush()

    def _flush(self) -> None:
        new, self._new, self._new_bytes = self._new, [], 0
        for level in self._levels:
            before = time.thread_time()
            stored = codec.encode_many(new, level)
            self.outcome.seconds[level] += time.thread_time() - before
            self.outcome.packed[level] += sum(len(form) for _, form in stored)

    def _gather(self, gathered: memoryview) -> None:
        for size in GATHER_SIZES:
            pieces = [gathered[at : at + size] for at in range(0, len(gathered), size)]
            for level in self._levels:
                stored = codec.encode_many(pieces, level)
                key = f"{size // KIB}/{level}"
                self.outcome.headers.setdefault(key, 0)
                self.outcome.headers[key] += sum(len(form) for _, form in stored)


def inflate(path: Path) -> bytes:
    """The content of a gzip file of one member."""
    return zlib.decompress(path.read_bytes(), wbits=31)


def measure(root: Path, blobs: list[corpus.Blob], console: Console) -> list[Outcome]:
    """Cut all of *blobs* in all ways."""
    cutters = [Cutter(way) for way in WAYS]
    for number, blob in enumerate(blobs):
        console.print(f"{number + 1}/{len(blobs)} {blob.app} {blob.release}", highlight=False)
        content = inflate(corpus.source(root, blob))
        for cutter in cutters:
            cutter.add(blob.size, content)
    return [cutter.outcome for cutter in cutters]


def tables(outcomes: list[Outcome]) -> Iterator[Table]:
    """What is looked at to choose."""
    first = outcomes[0]
    made = Table(
        title=f"{first.droplets} archives, {first.before / 1e6:,.0f} MB, "
        f"{first.inflated / 1e6:,.0f} MB inflated; stored at level 1, gathered in 64 KiB",
        title_justify="left",
    )
    sizes = ("unique MB", "gathered MB", "packs MB", "total MB")
    for heading in ("way", "chunks", "parts", *sizes, "ratio"):
        made.add_column(heading, justify="left" if heading == "way" else "right")
    for outcome in outcomes:
        total = outcome.total(1, 64 * KIB)
        packs = outcome.packed[1] + outcome.headers["64/1"]
        made.add_row(
            outcome.way.name,
            f"{outcome.chunks:,}",
            f"{outcome.parts:,}",
            f"{outcome.unique / 1e6:,.1f}",
            f"{outcome.gathered / 1e6:,.1f}",
            f"{packs / 1e6:,.1f}",
            f"{total / 1e6:,.1f}",
            f"{total / outcome.before:.3f}",
        )
    yield made
    for outcome in outcomes:
        if outcome.way.levels != LEVELS:
            continue
        made = Table(title=f"{outcome.way.name}: levels of zstd", title_justify="left")
        gathered = [f"gathered {size // KIB} KiB" for size in GATHER_SIZES]
        for heading in ("level", "packs MB", "seconds", *gathered, "ratio"):
            made.add_column(heading, justify="right")
        for level in LEVELS:
            made.add_row(
                str(level),
                f"{outcome.packed[level] / 1e6:,.1f}",
                f"{outcome.seconds[level]:,.1f}",
                *(f"{outcome.headers[f'{s // KIB}/{level}'] / 1e6:,.2f}" for s in GATHER_SIZES),
                f"{outcome.total(level, 64 * KIB) / outcome.before:.3f}",
            )
        yield made


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, write the result; 0 done, 1 if there is no corpus."""
    parser = argparse.ArgumentParser(prog="python -m bench.archives.cutting")
    parser.add_argument("corpus", type=Path, metavar="CORPUS_DIR")
    parser.add_argument("--app", action="append", default=[], help="only this one")
    parser.add_argument("--type", default="droplets", choices=("droplets", "buildpack caches"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/archives-cutting.json"))
    given = parser.parse_args(arguments)
    try:
        every = corpus.load(given.corpus)
    except CorpusError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    blobs = [b for b in every if b.type == given.type and b.app in (given.app or [b.app])]
    console = Console(width=None if sys.stdout.isatty() else 140)
    outcomes = measure(given.corpus, blobs, console)
    for table in tables(outcomes):
        console.print(table)
    result = {
        "command": "python -m bench.archives.cutting",
        "machine": machine.describe(given.corpus),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "outcomes": [asdict(outcome) | {"way": outcome.way._asdict()} for outcome in outcomes],
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
