"""Which blobs are worth taking apart now, by the newest commit.

A pass over the whole index, which at ten million files takes minutes of computing: so it is made
by a process of its own, which stands back for everybody, and never by the daemon.  Looks only.
Invariant: what is named here was a plain, hashed archive that nobody has used since the moment
that was given; whoever takes it apart looks again, because that was a commit ago.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from cafs.archives.kind import GZIP, ZIP, kind_of
from cafs.archives.nested import engines_of
from cafs.errors import CafsError, DaemonError, DamagedError, NotFoundError
from cafs.index import layout
from cafs.operate.first_bytes import head_of
from cafs.operate.passed_over import DAMAGED, NO_ARCHIVE, PassedOver
from cafs.operate.paths import resolve
from cafs.types import BlobNo, Ino
from cafs.view import View

AGED: Final = "aged"
GAIN_FIRST: Final[Mapping[str, float]] = {GZIP: 0.6, ZIP: 0.4}
"""Share of their size that archives are expected to gain, before any was measured."""

NICENESS = 19
"""How far the process that looks stands back (nice(1))."""
SIBLINGS_MAX: Final = 256
"""Files of a directory that may be one app's droplets; with more of them it is something else."""
CANDIDATES_MAX: Final = 2_000
STRANGERS_MAX: Final = 100_000
"""Blobs that are no archives and are told of, in one pass."""
SAMPLES: Final = 3
"""Blobs that show whether an engine makes the same bytes as another."""
SAMPLE_BYTES_MAX: Final = 16 << 20
"""A larger one is taken only if there is no other."""
_NOT_EVEN_WHEN_FORCED: Final = layout.BLOB_UNHASHED | layout.BLOB_AGED | layout.BLOB_INNER
_OUT_OF_THE_QUESTION: Final = _NOT_EVEN_WHEN_FORCED | layout.BLOB_LEFT


class Rules(NamedTuple):
    """What a pass goes by."""

    used_before_ns: int
    """Last used before this moment, in ns since 1970."""
    min_size: int
    """Bytes; smaller ones are taken only where a path leads to them."""
    keep_newest: bool = True
    """Whether the newest of several droplets of one directory stays plain."""
    gains: Mapping[str, float] = GAIN_FIRST
    """Expected gain by kind, as a share of the size."""
    limit: int = CANDIDATES_MAX
    below: str | None = None
    """Only what this path, from the store's root, leads to, and that whenever it was used and
    also if it was left before."""
    behind: tuple[int, BlobNo] | None = None
    """Where an earlier look came to, as Found.reached says: with a path, each is told of once."""
    aged: bool = False
    """Look for what is taken apart, instead of what may be."""
    samples: Sequence[int] = ()
    """Engines for which aged blobs are wanted that were made with them."""


class Candidate(NamedTuple):
    """A blob that is worth a try; or one that is aged, if that was asked for."""

    blob: BlobNo
    inos: tuple[Ino, ...]
    """The inodes that have it; with a path, those that it leads to."""
    kind: str
    """GZIP, ZIP, or AGED."""
    size: int
    last_used_ns: int
    expected: int
    """Bytes that taking it apart is expected to gain."""
    nameless: int = 0
    """How many inodes have it besides, which have no name any more."""

    @property
    def ino(self) -> Ino:
        """One of the inodes."""
        return self.inos[0]


class Found(NamedTuple):
    """The result of a pass."""

    candidates: list[Candidate]
    """Those that are expected to gain most come first."""
    strangers: list[BlobNo]
    """Blobs that are no archives, and need not be looked at again."""
    in_use: int
    """Blobs that were used too recently, whatever they are."""
    kept_newest: int
    """Archives that stay plain as the newest of their directory."""
    more: bool
    """There was more than is told: look again when this is done."""
    reached: tuple[int, BlobNo] | None
    """Size and number of the last blob that was looked at; larger ones come first."""
    samples: dict[int, list[BlobNo]]
    """Small aged blobs by the engine that they are made with."""
    passed: dict[str, int]
    """Blobs that the path leads to and that nothing is done about, by the reason; who names a
    path hears of all that is there."""


class _Use(NamedTuple):
    """Who has a blob, and when it was last used."""

    ino: Ino
    used_ns: int
    others: tuple[Ino, ...] = ()

    @property
    def inos(self) -> tuple[Ino, ...]:
        return (self.ino, *self.others)


class Search:
    """One pass over a view."""

    def __init__(self, view: View, rules: Rules) -> None:
        self._view = view
        self._rules = rules
        self._in_use = 0
        self._newest: dict[Ino, Ino | None] = {}
        self._passed = PassedOver(view, asked=rules.below is not None)
        # An earlier look has told of these, or the pass has changed them since.
        self._tell_others = rules.behind is None

    def run(self) -> Found:
        """All of it.  Raises NotFoundError for a path that leads nowhere, and IndexDamagedError
        only for pages that cannot be read."""
        rules = self._rules
        inodes = self._below(rules.below) if rules.below is not None else self._all_inodes()
        sizes = dict(self._blobs())
        uses = self._uses(sizes, inodes) if sizes or rules.below is not None else {}
        if rules.aged:
            return self._found_aged(sizes, uses)
        keep_newest = rules.keep_newest and rules.below is None
        parents, partitions = self._parents(uses) if uses and keep_newest else ({}, {})
        candidates: list[Candidate] = []
        strangers: list[BlobNo] = []
        kept = 0
        order = self._left(sizes, uses)
        looked = 0
        for looked, blob in enumerate(order, 1):  # noqa: B007
            try:
                kind = kind_of(head_of(self._view, blob))
                refs = self._view.blobs.get(blob).refs
            except (DamagedError, OSError):
                # Whoever reads it says what is wrong; a try would come to nothing.
                self._passed.add(blob, DAMAGED)
                continue
            use = uses[blob]
            if not kind:
                strangers.append(blob)
                self._passed.add(blob, NO_ARCHIVE)
            elif kind == GZIP and self._is_newest(use, parents, partitions):
                kept += 1
            else:
                expected = int(sizes[blob] * self._rules.gains.get(kind, 0.0))
                nameless = refs - len(use.inos)
                candidates.append(
                    Candidate(blob, use.inos, kind, sizes[blob], use.used_ns, expected, nameless)
                )
            if len(candidates) >= self._rules.limit or len(strangers) >= STRANGERS_MAX:
                break
        candidates.sort(key=lambda each: (-each.expected, each.blob))
        samples = self._samples()
        return Found(
            candidates,
            strangers,
            self._in_use,
            kept,
            looked < len(order),
            (sizes[order[looked - 1]], order[looked - 1]) if looked else None,
            samples,
            self._passed.counts(),
        )

    def _left(self, sizes: Mapping[BlobNo, int], uses: Mapping[BlobNo, _Use]) -> list[BlobNo]:
        """What was not looked at before, the largest first."""
        order = [(-sizes[blob], blob) for blob in uses]
        if self._rules.behind is not None:
            size, last = self._rules.behind
            order = [place for place in order if place > (-size, last)]
        return [blob for _, blob in sorted(order)]

    def _found_aged(self, sizes: Mapping[BlobNo, int], uses: Mapping[BlobNo, _Use]) -> Found:
        found = [
            Candidate(blob, use.inos, AGED, sizes[blob], use.used_ns, 0)
            for blob, use in ((blob, uses[blob]) for blob in self._left(sizes, uses))
        ]
        more = len(found) > self._rules.limit
        found = found[: self._rules.limit]
        reached = (found[-1].size, found[-1].blob) if found else None
        return Found(found, [], 0, 0, more, reached, {}, self._passed.counts())

    def _blobs(self) -> Iterator[tuple[BlobNo, int]]:
        rules = self._rules
        never = _OUT_OF_THE_QUESTION if rules.below is None else _NOT_EVEN_WHEN_FORCED
        for key, value in self._view.overlay.scan(layout.BLOBS, b"", b""):
            try:
                refs, flags = layout.blob_use(value)
                if rules.aged:
                    if refs and flags & layout.BLOB_AGED:
                        yield BlobNo(layout.from_u48(key)), layout.blob_size(value)
                    continue
                if not refs or flags & never:
                    continue
                size = layout.blob_size(value)
            except DamagedError:
                continue
            if size >= (rules.min_size if rules.below is None else 1):
                yield BlobNo(layout.from_u48(key)), size

    def _samples(self) -> dict[int, list[BlobNo]]:
        """A few aged blobs for each engine that is asked about, rather small ones."""
        wanted = set(self._rules.samples)
        found: dict[int, list[BlobNo]] = {number: [] for number in wanted}
        if not wanted:
            return found
        for key, value in self._view.overlay.scan(layout.BLOBS, b"", b""):
            try:
                refs, flags = layout.blob_use(value)
                if not refs or not flags & layout.BLOB_AGED:
                    continue
                size = layout.blob_size(value)
                if size > SAMPLE_BYTES_MAX and all(found[number] for number in wanted):
                    continue
                blob = BlobNo(layout.from_u48(key))
                numbers = engines_of(self._view.blobs, blob)
            except DamagedError:
                continue
            for number in numbers & wanted:
                found[number].append(blob)
            wanted = {number for number in wanted if len(found[number]) < SAMPLES}
            if not wanted:
                break
        return found

    def _all_inodes(self) -> Iterator[tuple[Ino, bytes]]:
        for key, value in self._view.overlay.scan(layout.INODES, b"", b""):
            yield Ino(layout.from_u48(key)), value

    def _below(self, path: str) -> Iterator[tuple[Ino, bytes]]:
        """Inodes of the files that a path leads to, itself or below it; each once."""
        get, scan = self._view.overlay.get, self._view.overlay.scan
        seen: set[Ino] = set()
        waiting = [resolve(self._view, os.fsencode(path)).ino]
        while waiting:
            ino = waiting.pop()
            value = None if ino in seen else get(layout.INODES, layout.u48(ino))
            seen.add(ino)
            if value is None:
                continue
            if not stat.S_ISDIR(layout.inode_content(value)[0]):
                yield ino, value
                continue
            prefix = layout.u48(ino)
            waiting += [
                layout.split_entry(entry)[0] for _, entry in scan(layout.ENTRIES, prefix, prefix)
            ]

    def _uses(
        self, sizes: Mapping[BlobNo, int], inodes: Iterator[tuple[Ino, bytes]]
    ) -> dict[BlobNo, _Use]:
        uses: dict[BlobNo, _Use] = {}
        for ino, value in inodes:
            try:
                mode, nlink, _, number = layout.inode_content(value)
                if not stat.S_ISREG(mode) or not nlink:
                    continue
                if number not in sizes:
                    if self._tell_others:
                        self._passed.add(number)
                    continue
                attr = layout.unpack_inode(value)
            except DamagedError:
                continue
            blob = BlobNo(number)
            used = max(attr.atime_ns, attr.mtime_ns, attr.ctime_ns)
            before = uses.get(blob)
            if before is None:
                uses[blob] = _Use(ino, used)
            else:
                uses[blob] = _Use(before.ino, max(used, before.used_ns), (*before.others, ino))
        if self._rules.below is not None or self._rules.aged:
            return uses
        ripe = {blob: use for blob, use in uses.items() if use.used_ns < self._rules.used_before_ns}
        self._in_use = len(uses) - len(ripe)
        return ripe

    def _parents(self, uses: Mapping[BlobNo, _Use]) -> tuple[dict[Ino, list[Ino]], dict[Ino, Ino]]:
        """Directories of the inodes in question; and directories with two-letter names, each
        with the one that it lies in."""
        wanted = {ino for use in uses.values() for ino in use.inos}
        parents: dict[Ino, list[Ino]] = {}
        short: dict[Ino, Ino] = {}
        for key, value in self._view.overlay.scan(layout.ENTRIES, b"", b""):
            ino, kind, name = layout.split_entry(value)
            if kind == stat.S_IFDIR >> 12:
                if len(name) == 2:
                    short[ino] = Ino(layout.from_u48(key))
            elif ino in wanted:
                parents.setdefault(ino, []).append(Ino(layout.from_u48(key)))
        return parents, {ino: above for ino, above in short.items() if above in short}

    def _is_newest(
        self, use: _Use, parents: Mapping[Ino, list[Ino]], partitions: Mapping[Ino, Ino]
    ) -> bool:
        for ino in use.inos:
            for directory in parents.get(ino, ()):
                # In a partition directory (ab/cd) nothing belongs together.
                if directory in partitions:
                    continue
                if directory not in self._newest:
                    self._newest[directory] = self._newest_of(directory)
                if self._newest[directory] == ino:
                    return True
        return False

    def _newest_of(self, directory: Ino) -> Ino | None:
        """The file of a directory that changed last, if there are several and not too many."""
        prefix = layout.u48(directory)
        found: list[tuple[int, Ino]] = []
        entries = self._view.overlay.scan(layout.ENTRIES, prefix, prefix)
        for count, (_, value) in enumerate(islice(entries, SIBLINGS_MAX + 1)):
            if count == SIBLINGS_MAX:
                return None
            ino, kind, _ = layout.split_entry(value)
            record = self._view.overlay.get(layout.INODES, layout.u48(ino))
            if kind != stat.S_IFREG >> 12 or record is None:
                continue
            attr = layout.unpack_inode(record)
            if attr.size >= self._rules.min_size:
                found.append((attr.mtime_ns, ino))
        return max(found)[1] if len(found) > 1 else None


async def search(store: Path, rules: Rules) -> Found:
    """A pass over *store* in a process of its own, which ends if this is cancelled.

    Raises NotFoundError for a path that leads nowhere, DaemonError when that process fails.
    """
    said = json.dumps(rules._asdict())
    command = [sys.executable, "-m", __name__, str(store), said, str(NICENESS)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env=environment
        )
    except OSError as error:
        raise DaemonError(f"cannot look for archives: {error}") from error
    if done.returncode == NotFoundError("").meaning.exit_code:
        raise NotFoundError(done.stderr.decode(errors="replace").strip())
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = lines[-1] if lines else f"exit code {done.returncode}"
        raise DaemonError(f"cannot look for archives: {said}", advice=f"run: cafs check {store}")
    answer: dict[str, Any] = json.loads(done.stdout)
    candidates = [
        Candidate(blob, tuple(inos), *rest) for blob, inos, *rest in answer.pop("candidates")
    ]
    # JSON knows keys that are text only.
    samples = {int(number): blobs for number, blobs in answer.pop("samples").items()}
    reached = answer.pop("reached")
    return Found(
        candidates=candidates,
        samples=samples,
        reached=tuple(reached) if reached else None,
        **answer,
    )


def main(store: str, rules: str, niceness: str) -> int:
    """What the process does; its answer goes to stdout as JSON."""
    os.nice(int(niceness))
    try:
        with View(Path(store)) as view:
            found = Search(view, Rules(**json.loads(rules))).run()
    except CafsError as error:
        sys.stderr.write(f"{error}\n")
        return error.meaning.exit_code
    json.dump(found._asdict(), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
