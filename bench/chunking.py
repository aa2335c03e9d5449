"""How chunk sizes decide what is stored: ``python -m bench.chunking CORPUS_DIR``.

Cuts, deduplicates and compresses real content as a store would, once for each choice of chunk
parameters, and counts packs and index.  CORPUS_DIR is what ``python -m bench corpus`` made;
each of its parts is measured as a store of its own.  docs/decisions/0002-chunking.md is
written from a result of this.

Unlike the rest of the package it calls into cafs: what it compares no command can set up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lmdb
import xxhash
from rich.console import Console
from rich.table import Table

from bench import machine
from cafs.blobs import codec, recipe
from cafs.blobs.chunker import DIGEST_SIZE, KIB, ChunkParams, sha256_each, split
from cafs.index import layout
from cafs.types import BlobNo, ChunkNo, Extent, PackNo

PARTS = {
    "releases": "releases, files as they lie",
    "resources": "resource cache, files of 64 KiB and more",
    "zips": "zips of the releases",
    "droplets": "tar | gzip of the releases",
}
SIZES = (16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB)
SHAPES = ((4, 4), (8, 8), (2, 2))
"""avg / min and max / avg; the first for all sizes, the others for one."""
SHAPED_SIZE = 64 * KIB


@dataclass
class Outcome:
    """One part of the corpus stored with one choice of parameters.  Bytes, if not said."""

    part: str
    params: ChunkParams
    files: int = 0
    logical: int = 0
    allocated: int = 0
    """What the backing filesystem allocates for the same files."""
    blobs: int = 0
    references: int = 0
    """Of recipes to chunks."""
    chunks: int = 0
    """Stored ones."""
    literals: int = 0
    """How many parts of recipes hold their bytes themselves."""
    unique: int = 0
    """In the stored chunks, before compression."""
    packs: int = 0
    """In the stored chunks, compressed."""
    index: int = 0
    """LMDB pages of chunks, blobs, recipes and their digests; without the tree."""
    seconds: float = 0.0

    @property
    def ratio(self) -> float:
        """Stored bytes, index included, by allocated ones."""
        return (self.packs + self.index) / self.allocated


@dataclass
class Row:
    """One content's recipe."""

    size: int
    parts: list[recipe.Part]


@dataclass
class Simulation:
    """What a store would hold."""

    outcome: Outcome
    numbers: dict[bytes, int] = field(default_factory=dict)
    """Chunk's digest -> its number."""
    rows: dict[bytes, Row] = field(default_factory=dict)
    """Content's digest -> its recipe."""

    def add(self, path: Path) -> None:
        """Store one file."""
        data = path.read_bytes()
        outcome = self.outcome
        outcome.files += 1
        outcome.logical += len(data)
        outcome.allocated += path.stat().st_blocks * 512
        content = xxhash.xxh3_128_digest(data)
        if data and content not in self.rows:
            self.rows[content] = Row(len(data), self._parts(data))

    def _parts(self, data: bytes) -> list[recipe.Part]:
        outcome = self.outcome
        ends = split(data, outcome.params, final=True)
        view = memoryview(data)
        pieces = [view[start:end] for start, end in itertools.pairwise([0, *ends])]
        digests = sha256_each(pieces)
        parts: list[recipe.Part] = []
        new: list[memoryview] = []
        for number, piece in enumerate(pieces):
            if len(piece) <= recipe.LITERAL_MAX:
                parts.append(recipe.literal(bytes(piece)))
                outcome.literals += 1
                continue
            digest = digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]
            if digest not in self.numbers:
                self.numbers[digest] = len(self.numbers) + 1
                new.append(piece)
            parts.append(recipe.chunk(ChunkNo(self.numbers[digest]), len(piece)))
            outcome.references += 1
        outcome.unique += sum(map(len, new))
        compressible = not codec.looks_compressed(data[: codec.HEAD_LENGTH])
        stored = codec.encode_many(new, compressible=compressible)
        outcome.packs += sum(len(form) for _, form in stored)
        return parts

    def finish(self) -> Outcome:
        """Count the index."""
        self.outcome.blobs = len(self.rows)
        self.outcome.chunks = len(self.numbers)
        self.outcome.index = index_bytes(self)
        return self.outcome


def index_bytes(simulation: Simulation) -> int:
    """Write the index as a store does, keys in the same order, and count LMDB's pages."""
    names = ("chunks", "chunk_sha256", "blobs", "blob_sha256", "blob_sha1", "recipes")
    with (
        tempfile.TemporaryDirectory() as directory,
        lmdb.open(directory, map_size=4 << 30, max_dbs=len(names), sync=False) as environment,
    ):
        base = {name: environment.open_db(name.encode()) for name in names}
        with environment.begin(write=True) as transaction:
            for digest, number in simulation.numbers.items():
                extent = Extent(PackNo(1), 0, 0, codec.RAW, 0, 0)
                record = layout.pack_chunk(layout.ChunkRecord(digest, extent, 1))
                key = layout.u48(number)
                transaction.put(key, record, db=base["chunks"], append=True)
                key = layout.digest_key(digest, ChunkNo(number))
                transaction.put(key, b"", db=base["chunk_sha256"])
            for number, (content, row) in enumerate(simulation.rows.items(), 1):
                blob = BlobNo(number)
                # Any digests of their length have the same cost.
                sha256, sha1 = content * 2, content[::-1] + bytes(4)
                encoded = recipe.encode(row.parts)
                inline = len(encoded) <= layout.INLINE_PARTS_MAX
                body = encoded if inline else b""
                record = layout.pack_blob(layout.BlobRecord(row.size, 1, 0, sha256, sha1, body))
                transaction.put(layout.u48(blob), record, db=base["blobs"], append=True)
                transaction.put(layout.digest_key(sha256, blob), b"", db=base["blob_sha256"])
                transaction.put(layout.digest_key(sha1, blob), b"", db=base["blob_sha1"])
                if not inline:
                    put_rows(transaction, base["recipes"], blob, row.parts)
            return sum(page_bytes(transaction.stat(db)) for db in base.values())


def page_bytes(stat: Any) -> int:
    """The bytes of a database's pages."""
    count = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return int(count * stat["psize"])


def put_rows(transaction: Any, base: Any, blob: BlobNo, parts: list[recipe.Part]) -> None:
    """Write a long recipe in rows."""
    start = 0
    for at in range(0, len(parts), layout.PARTS_PER_ROW):
        group = parts[at : at + layout.PARTS_PER_ROW]
        key = layout.recipe_key(blob, start)
        transaction.put(key, recipe.encode(group), db=base, append=True)
        start += recipe.total_length(group)


def choices() -> Iterator[ChunkParams]:
    """The parameters to compare."""
    for avg_size in SIZES:
        for low, high in SHAPES if avg_size == SHAPED_SIZE else SHAPES[:1]:
            for zip_members in (True, False):
                yield ChunkParams(avg_size // low, avg_size, avg_size * high, zip_members)


def measure(root: Path, part: str, params: ChunkParams) -> Outcome:
    """Store one part of the corpus."""
    simulation = Simulation(Outcome(part, params))
    began = time.monotonic()
    for directory, names, files in os.walk(root / part):
        names.sort()
        for name in sorted(files):
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                simulation.add(path)
    outcome = simulation.finish()
    outcome.seconds = time.monotonic() - began
    return outcome


def table(part: str, outcomes: list[Outcome]) -> Table:
    """What is looked at to choose."""
    first = outcomes[0]
    title = (
        f"{PARTS[part]}: {first.files} files, {first.logical / 1e6:.0f} MB, "
        f"{first.allocated / 1e6:.0f} MB allocated"
    )
    made = Table(title=title, title_justify="left")
    headings = "min/avg/max KiB,at members,chunks,literals,unique MB,packs MB,index MB,stored/alloc"
    headings += ",index/logical %,index B/chunk"
    for heading in headings.split(","):
        made.add_column(heading, justify="right")
    for outcome in outcomes:
        params = outcome.params
        sizes = (params.min_size, params.avg_size, params.max_size)
        made.add_row(
            "/".join(str(size // KIB) for size in sizes),
            "yes" if params.zip_members else "no",
            str(outcome.chunks),
            str(outcome.literals),
            f"{outcome.unique / 1e6:.1f}",
            f"{outcome.packs / 1e6:.1f}",
            f"{outcome.index / 1e6:.2f}",
            f"{outcome.ratio:.3f}",
            f"{100 * outcome.index / outcome.logical:.3f}",
            f"{outcome.index / outcome.chunks:.0f}",
        )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, write the result; 0 done, 1 if there is no corpus."""
    parser = argparse.ArgumentParser(prog="python -m bench.chunking", description=main.__doc__)
    parser.add_argument("corpus", type=Path, metavar="CORPUS_DIR")
    parser.add_argument("--json", type=Path, default=Path("bench/results/chunking.json"))
    given = parser.parse_args(arguments)
    parts = [part for part in PARTS if any((given.corpus / part).glob("*"))]
    if not parts:
        print(f"bench: no {', '.join(PARTS)} in {given.corpus}", file=sys.stderr)
        return 1
    console = Console(width=None if sys.stdout.isatty() else 140)
    outcomes: list[Outcome] = []
    for part in parts:
        found = [measure(given.corpus, part, params) for params in choices()]
        console.print(table(part, found))
        outcomes += found
    described = given.corpus / "corpus.json"
    result = {
        "command": "python -m bench.chunking",
        "machine": machine.describe(given.corpus),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "corpus": json.loads(described.read_text()) if described.exists() else {},
        "outcomes": [{**asdict(outcome), "ratio": outcome.ratio} for outcome in outcomes],
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
