"""Makes what has gathered in the overlay durable, in the order that docs/format.md numbers.

Owns the moment of commit: packs first (fdatasync), then one index transaction with sync, then
whoever waited is told.  Never blocks the event loop.  Invariant: committed <= frozen <=
gathering, as generations; a waiter is released only when the generation that holds its changes
is committed, or with the error of an attempt that began after it asked.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from cafs.clock import Clock
from cafs.errors import CafsError
from cafs.index.overlay import Layer, Overlay
from cafs.types import Generation

log = logging.getLogger(__name__)


class Committer:
    """One per open store.  All methods belong to the event loop.

    *prepare* runs on the event loop just before a snapshot and may still change the overlay
    (counters, pack sizes); *write* runs in a thread and returns when the layer is on disk.
    """

    def __init__(
        self,
        overlay: Overlay,
        prepare: Callable[[], None],
        write: Callable[[Layer], None],
        clock: Clock,
    ) -> None:
        self._overlay = overlay
        self._prepare = prepare
        self._write = write
        self._clock = clock
        self._wanted = trio.Event()
        self._attempted = trio.Event()
        self._lock = trio.Lock()
        self.committed = Generation(0)
        self.error: CafsError | None = None
        """Why the last attempt failed; None once one has succeeded again."""
        self.last_seconds = 0.0
        """How long the last successful commit took."""
        self.committed_ns = self._frozen_ns = clock.now_ns()
        """What was changed before that moment is committed."""
        self.thawed: list[Callable[[], None]] = []
        """Called on the event loop after each commit."""
        self.failed: list[Callable[[CafsError], None]] = []
        """Called on the event loop after each attempt that failed."""
        self._attempts = 0

    async def commit(self) -> None:
        """Return when every change made before this call is on disk.

        Raises the error of the disk if it cannot be: the changes stay visible and pending,
        and are tried again.
        """
        need = self._overlay.generation + (1 if self._overlay.dirty else 0)
        begun = self._attempts
        while self.committed < need:
            attempt = self._attempted
            self._wanted.set()
            await attempt.wait()
            # One that was under way before says nothing: the fault may have been over since.
            if self.error is not None and self._attempts > begun:
                raise self.error

    def urge(self) -> None:
        """Begin a commit soon; nobody waits for it."""
        self._wanted.set()

    async def run(self) -> None:
        """Commit whenever somebody asked, for ever.  (The interval is the caller's.)"""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await self.once()

    async def once(self) -> None:
        """One attempt; does not raise errors of the disk, but keeps and logs them."""
        async with self._lock:
            await self._once()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[bool]:
        """Keep commits from beginning; false if a failed one still waits to be tried again."""
        async with self._lock:
            yield not self._overlay.frozen

    async def _once(self) -> None:
        overlay = self._overlay
        if not (overlay.dirty or overlay.frozen):
            self._announce(None)
            return
        self._attempts += 1
        began = self._clock.monotonic()
        try:
            if not overlay.frozen:
                self._frozen_ns = self._clock.now_ns()
                self._prepare()
            layer = overlay.freeze()
            # Not to be cancelled half-way: the loop must learn whether it was committed.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._write, layer)
        except Exception as error:
            problem = _foreseen(error)
            if type(problem) is not type(self.error):
                log.error("commit failed: %s; what to do: %s", problem, problem.advice)
            for failed in self.failed:
                failed(problem)
            self._announce(problem)
            return
        self.last_seconds = self._clock.monotonic() - began
        self.committed, self.committed_ns = overlay.generation, self._frozen_ns
        overlay.thaw()
        for callback in self.thawed:
            callback()
        if self.error is not None:
            log.info("commits succeed again")
        self._announce(None)

    def _announce(self, error: CafsError | None) -> None:
        self.error = error
        attempted, self._attempted = self._attempted, trio.Event()
        attempted.set()


def _foreseen(error: Exception) -> CafsError:
    """The error to tell those who wait.  A defect must not end the mount: it can still read."""
    if isinstance(error, CafsError):
        return error
    log.error("defect in a commit", exc_info=error)
    return CafsError(f"defect in a commit: {error!r}", advice="see the daemon's log")
