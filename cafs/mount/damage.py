"""Telling the operator what is damaged: which chunk, which blob, and every path that has it.

A request that finds damage fails (EIO, 500) with one log line at once.  The paths take a
pass over the index, which a child process makes, so that nobody waits for it; it is asked
about several files at a time, and not more often than every few seconds.  Invariant: however
often damage is read, the log grows by a bounded number of lines.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import trio

from cafs.errors import CafsError, ChunkDamagedError, EngineError, FsError, RebuildError
from cafs.index import pages
from cafs.log import RateLimit, fields
from cafs.store import Store
from cafs.types import NO_BLOB, ChunkNo, Ino

log = logging.getLogger(__name__)

CONTENT_ADVICE = (
    "copy it into the mount again from a backup, or delete it; cafs scrub finds all of them"
)
PAUSE_S = 5.0
TOLD_MAX = 10_000
LINES_MAX = 20
"""Lines a minute about requests; the paths come on top, each once."""
INODES_MAX = 50
"""Files that are asked about at once; more than this is a case for a scrub."""


class DamageReporter:
    """Reports damage of one store.  Belongs to the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._limit = RateLimit(burst=LINES_MAX)
        self._found = trio.Event()
        self._waiting: dict[Ino, CafsError] = {}
        self._told: set[str] = set()
        self._chunks: set[ChunkNo] = set()
        self.count = 0
        """Requests that found damage since the start."""

    def notice(self, request: str, ino: Ino, error: CafsError) -> None:
        """A request about an inode found damage, or a record missing; returns at once."""
        self.count += 1
        blob = self._blob(ino)
        self._limit.log(
            log,
            logging.ERROR,
            "damage",
            f"{error}; the request failed",
            request=request,
            inode=ino,
            blob=blob or "-",
        )
        if isinstance(error, ChunkDamagedError) and error.chunk:
            self._chunks.add(ChunkNo(error.chunk))
        key = blob or str(ino)
        if key not in self._told and len(self._waiting) < INODES_MAX:
            self._told.add(key)
            self._waiting[ino] = error
            self._found.set()

    def _blob(self, ino: Ino) -> str:
        try:
            attr = self._store.tree.inodes.get(ino)
            if attr.blob == NO_BLOB or attr.mode >> 12 != 0o10:
                return ""
            digest = self._store.blobs.get(attr.blob).sha256
            return digest.hex() if any(digest) else ""
        except (CafsError, FsError):
            return ""

    async def run(self) -> None:
        """Find the paths of what was noticed, for ever."""
        while True:
            await self._found.wait()
            self._found = trio.Event()
            waiting, self._waiting = self._waiting, {}
            chunks, self._chunks = self._chunks, set()
            if len(self._told) > TOLD_MAX:
                self._told.clear()
            try:
                # So that nothing new is built on them, and writing them again heals them.
                self._store.chunks.condemn(sorted(chunks), damaged=True)
                await self._store.commit()
            except CafsError as error:
                log.warning("what is damaged could not be marked: %s", error)
            try:
                await self._name(waiting)
            except OSError as error:
                # As when another cafs was installed in place of the one that runs.
                log.warning("the paths of what is damaged are not known: %s", error)
            except Exception:
                log.exception("defect in naming what is damaged")
            await trio.sleep(PAUSE_S)

    async def _name(self, waiting: dict[Ino, CafsError]) -> None:
        command = [sys.executable, "-m", "cafs.operate.name_damage", str(self._store.path)]
        done = await trio.run_process(
            [*command, *map(str, waiting)],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        if done.returncode:
            text = done.stderr.decode(errors="replace").strip().splitlines()
            log.warning("the paths of what is damaged are not known: %s", text[-1:])
            return
        for line in done.stdout.splitlines():
            found = json.loads(line)
            error = waiting[Ino(found["inode"])]
            log.error(
                "damaged file: %s; what to do: %s",
                error,
                _advice(error),
                extra=fields(
                    blob=found["sha256"] or "-",
                    inode=found["inode"],
                    path=os.fsencode(found["path"]),
                ),
            )


def _advice(error: CafsError) -> str:
    """What helps against it: each kind of damage has its own way back."""
    if isinstance(error, ChunkDamagedError):
        return CONTENT_ADVICE
    if isinstance(error, RebuildError) and isinstance(error.__cause__, EngineError):
        # The archive is not damaged: what makes it is missing.
        return error.__cause__.advice
    if isinstance(error, EngineError | RebuildError):
        return error.advice
    return pages.ADVICE
