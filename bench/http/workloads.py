"""What is done to each side in turn, and measured.

A workload prepares a side once, and is then run once in each repetition.  Invariant: only what
is handed to ``take`` is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

from bench.http.load import Ask, Timing
from bench.http.servers import CafsServer, Server
from bench.sides import drop_caches

RESOURCES = "cc-resources/app_bits_cache"
RESOURCE_BYTES = 65_600
"""Cloud Controller asks about files of more than 64 KiB only."""
SIZES = {"64kb": 64 << 10, "1mb": 1 << 20, "100mb": 100 << 20}

Take = Callable[[str, Callable[[], Timing | float]], None]


@dataclass(frozen=True)
class Context:
    """What workloads share."""

    scratch: Path
    """In memory: bodies come from there."""
    seed: int
    quick: bool
    keys: int

    def random(self, *what: object) -> Random:
        """A generator that depends on the seed and on what it is for, and on nothing else."""
        return Random(f"{self.seed} {what}")

    def body(self, size: int, *what: object) -> Path:
        """A file of random bytes, the same for the same words."""
        name = "-".join(map(str, (size, *what)))
        path = self.scratch / name
        if not path.exists():
            path.write_bytes(self.random(size, *what).randbytes(size))
        return path


class Workload(ABC):
    """One thing that is done to every side."""

    name: ClassVar[str]

    def __init__(self, context: Context) -> None:
        self.context = context

    @abstractmethod
    def prepare(self, side: Server) -> None:
        """Before the first repetition; the side serves an empty tree."""

    @abstractmethod
    def run(self, side: Server, repetition: int, take: Take) -> None:
        """One repetition; must leave *side* fit for the next one."""


def partitioned(root: str, name: str) -> str:
    """Where Cloud Controller puts a key."""
    return f"{root}/{name[:2]}/{name[2:4]}/{name}"


def sha1(*what: object) -> str:
    """A key, as random as a file's digest."""
    return hashlib.sha1(" ".join(map(str, what)).encode(), usedforsecurity=False).hexdigest()


def heads(paths: list[str], status: int) -> list[Ask]:
    """HEAD of each."""
    return [Ask("HEAD", path, status) for path in paths]


class Existence(Workload):
    """HEAD of many small blobs in the layout of the resource cache."""

    name = "existence"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.there = [partitioned(RESOURCES, sha1("key", n)) for n in range(context.keys)]
        self._count = 5_000 if context.quick else 20_000

    def prepare(self, side: Server) -> None:
        made: set[str] = set()
        for path in self.there:
            parent = path.rpartition("/")[0]
            if parent not in made:
                os.makedirs(side.root / parent, exist_ok=True)
                made.add(parent)
            fd = os.open(side.root / path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(fd, path.encode() * 2)
            os.close(fd)
        side.settle()

    def run(self, side: Server, repetition: int, take: Take) -> None:
        random = self.context.random("existence", repetition)
        hits = random.sample(self.there, min(self._count, len(self.there)))
        # Missing keys lie in partitions that are there, as most do in a store of any size.
        misses = [partitioned(RESOURCES, sha1("miss", repetition, n)) for n in range(len(hits))]
        for what, paths, status in (("hit", hits, 200), ("miss", misses, 404)):
            asks = heads(paths, status)
            side.cold()
            take(f"head_{what}_cold", lambda asks=asks: side.ask(asks))  # type: ignore[misc]
        everything = heads(random.sample(self.there, len(self.there)), 200)
        side.cold()
        before, own = _memory(), side.usage().anonymous_bytes
        side.ask(everything, connections=4)
        grown = _memory() - before + side.usage().anonymous_bytes - own
        take("memory", lambda: max(0.0, grown / len(everything)))
        rate = 0.0
        for what, paths, status in (("hit", hits, 200), ("miss", misses, 404)):
            asks = heads(paths, status)
            side.ask(asks)

            def go(asks: list[Ask] = asks, **how: object) -> Timing:
                return side.ask(asks, **how)  # type: ignore[arg-type]

            take(f"head_{what}", go)
            take(f"head_{what}_clear", lambda go=go: go(tls=False))  # type: ignore[misc]
            take(f"head_{what}_16", lambda go=go: go(connections=16))  # type: ignore[misc]
            some = asks[:1000]
            take(
                f"head_{what}_fresh",
                lambda some=some: side.ask(some, mode="fresh"),  # type: ignore[misc]
            )
            if what == "hit":
                timing = side.ask(asks)
                rate = timing.operations / timing.seconds
        take("warm_up", lambda: self._warm_up(side, rate, random))

    def _warm_up(self, side: Server, rate: float, random: Random) -> float:
        side.stop()
        drop_caches()
        start = time.monotonic()
        side.start()
        while time.monotonic() - start < 60:
            timing = side.ask(heads(random.choices(self.there, k=2000), 200))
            if timing.operations / timing.seconds >= 0.8 * rate:
                break
        return time.monotonic() - start


def _memory() -> float:
    """Bytes that the kernel keeps in memory: pages, names, inodes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    wanted = ("Cached", "Buffers", "SReclaimable", "SUnreclaim")
    return sum(int(fields[name].split()[0]) * 1024 for name in wanted)


class Push(Workload):
    """A push of 5,000 files: what Cloud Controller asks, one by one and in one question."""

    name = "push"
    FILES = 5_000

    def prepare(self, side: Server) -> None:
        common = self.context.random("resource").randbytes(RESOURCE_BYTES - 40)
        for n in range(0, self.FILES, 2):
            name = sha1("resource", n)
            path = side.root / partitioned(RESOURCES, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode() + common)
        side.settle()

    def run(self, side: Server, repetition: int, take: Take) -> None:
        names = [sha1("resource", n) for n in range(self.FILES)]
        asks = [
            Ask("HEAD", partitioned(RESOURCES, name), 404 if n % 2 else 200)
            for n, name in enumerate(names)
        ]
        side.ask(asks)
        take("push", lambda: side.ask(asks).seconds)
        if not isinstance(side, CafsServer):
            take("bulk", lambda: side.ask(asks).seconds)
            some = asks[:500]
            take(
                "bulk_fresh",
                lambda: side.ask(some, mode="fresh").seconds * len(asks) / len(some),
            )
            return
        body = self.context.scratch / "matches.json"
        resources = [
            {"checksum": {"value": name}, "size_in_bytes": RESOURCE_BYTES, "path": name,
             "mode": "644"}
            for name in names
        ]  # fmt: skip
        body.write_text(json.dumps({"resources": resources}))
        side.resource_matches(body)
        for key in ("bulk", "bulk_fresh", "bulk_time"):
            take(key, lambda: side.resource_matches(body).p50_s)


class Download(Workload):
    """GET of blobs of random bytes, which nothing compresses."""

    name = "download"

    def _counts(self) -> dict[str, int]:
        quick = self.context.quick
        return {"64kb": 128, "1mb": 24 if quick else 64, "100mb": 2 if quick else 4}

    def prepare(self, side: Server) -> None:
        for key, count in self._counts().items():
            directory = side.root / "cc-droplets" / key
            directory.mkdir(parents=True)
            for n in range(count):
                content = self.context.random("download", key, n).randbytes(SIZES[key])
                (directory / str(n)).write_bytes(content)
        side.settle()

    def run(self, side: Server, repetition: int, take: Take) -> None:
        for key, count in self._counts().items():
            once = [Ask("GET", f"cc-droplets/{key}/{n}", 200) for n in range(count)]
            side.cold()
            take(f"get_{key}_cold", lambda once=once: side.ask(once))  # type: ignore[misc]
            warm = once * (4 if key != "100mb" else 2)
            side.ask(once)
            for words, tls in (("tls", True), ("clear", False)):
                for connections in (1, 16):
                    take(
                        f"get_{key}_{words}_{connections}",
                        lambda warm=warm, tls=tls, connections=connections: side.ask(  # type: ignore[misc]
                            warm if connections == 1 else warm * (4 if len(warm) < 16 else 1),
                            tls=tls,
                            connections=connections,
                        ),
                    )


class Upload(Workload):
    """PUT of new content, and of content that is stored under another key already."""

    name = "upload"

    def _counts(self) -> dict[str, int]:
        return {"64kb": 64, "1mb": 16, "100mb": 1 if self.context.quick else 3}

    def prepare(self, side: Server) -> None:
        side.settle()

    def run(self, side: Server, repetition: int, take: Take) -> None:
        for key, count in self._counts().items():
            bodies = [self.context.body(SIZES[key], "put", repetition, n) for n in range(count)]
            for what in ("new", "known"):
                names = [sha1(what, key, repetition, n) for n in range(count)]
                asks = [
                    Ask("PUT", partitioned("cc-packages", name), 201, body)
                    for name, body in zip(names, bodies, strict=True)
                ]
                take(f"put_{key}_{what}", lambda asks=asks: side.ask(asks))  # type: ignore[misc]
            side.settle()


class Tree(Workload):
    """COPY, DELETE of a tree, and PROPFIND of a large directory."""

    name = "tree"

    def _children(self) -> int:
        return 5_000 if self.context.quick else 65_536

    def _files(self) -> int:
        return 2_000 if self.context.quick else 20_000

    def prepare(self, side: Server) -> None:
        directory = side.root / "cc-x"
        directory.mkdir()
        for key in ("1mb", "100mb"):
            content = self.context.random("copy", key).randbytes(SIZES[key])
            (directory / key).write_bytes(content)
        large = side.root / "large"
        large.mkdir()
        for n in range(self._children()):
            (large / f"child-{n}").touch()
        side.settle()

    def run(self, side: Server, repetition: int, take: Take) -> None:
        base = f"https://localhost:{side.ports['tls']}/admin"
        for key in ("1mb", "100mb"):
            target = f"cc-x/copy-{key}"
            put = Ask("PUT", target, 201 if repetition == 0 else 204, Path("/dev/null"))
            copy = Ask("COPY", f"cc-x/{key}", 204, None, f"Destination: {base}/{target}")
            side.ask([put])
            take(f"copy_{key}", lambda copy=copy: side.ask([copy]).seconds)  # type: ignore[misc]
        for n in range(self._files()):
            path = side.root / partitioned("buildpack_cache", sha1("tree", n))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 200)
        side.settle()
        delete = [Ask("DELETE", "buildpack_cache/", 204)]
        take("delete_tree", lambda: side.ask(delete).seconds)
        listing = [Ask("PROPFIND", "large/", 207, None, "Depth: 1")]
        side.ask(listing)
        take("propfind", lambda: side.ask(listing).seconds)


WORKLOADS: tuple[type[Workload], ...] = (Existence, Push, Download, Upload, Tree)
