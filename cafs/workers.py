"""A few threads for work that must not run on the event loop, and the way back.

trio's own threads cost a wake-up of the event loop and a cancel scope per call, which is more
than hashing a small file costs.  Here results gather in a queue and one wake-up drains it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, cast

import trio

from cafs.errors import DaemonError

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Job(Generic[T]):
    __slots__ = ("done", "error", "result", "work")

    def __init__(
        self, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]
    ) -> None:
        self.work = work
        self.done = done
        self.result: T | None = None
        self.error: Exception | None = None


class Workers:
    """*threads* worker threads that serve one event loop.

    Create it on the event loop; close() it there too.  The queue has no bound of its own:
    whoever submits bounds what is under way, because only they know its size in bytes.
    """

    def __init__(self, threads: int, name: str, niceness: int = 0) -> None:
        """*niceness*, 0 to 19, is how far the threads stand back for others (setpriority(2))."""
        self._niceness = niceness
        self._token = trio.lowlevel.current_trio_token()
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._finished: deque[_Job[Any]] = deque()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]
    ) -> None:
        """Run *work* in a thread, then *done(result, error)* on the event loop.

        After close() *done* is told at once that it is too late.
        """
        if self._closed:
            done(None, _too_late())
        else:
            self._jobs.put(_Job(work, done))

    async def run(self, work: Callable[[], T]) -> T:
        """Run *work* in a thread and return what it returns, or raise what it raises.

        Not cancelled half-way: work on the store is short, and its effect must be known.
        """
        finished = trio.Event()
        outcome: list[tuple[T | None, Exception | None]] = []

        def done(result: T | None, error: Exception | None) -> None:
            outcome.append((result, error))
            finished.set()

        self.submit(work, done)
        with trio.CancelScope(shield=True):
            await finished.wait()
        result, error = outcome[0]
        if error is not None:
            raise error
        return cast(T, result)

    @asynccontextmanager
    async def parked(self) -> AsyncIterator[None]:
        """Nothing runs in these threads within the block; what is submitted waits."""
        arrived, leave = threading.Semaphore(0), threading.Event()

        def park() -> None:
            arrived.release()
            leave.wait()

        def wait_for_all() -> None:
            for _ in self._threads:
                arrived.acquire()

        try:
            for _ in self._threads:
                self.submit(park, lambda _result, _error: None)
            await trio.to_thread.run_sync(wait_for_all)
            yield
        finally:
            leave.set()

    def _serve(self) -> None:
        if self._niceness:
            # On Linux a priority belongs to a thread, whatever POSIX says of processes.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while (job := self._jobs.get()) is not None:
            try:
                job.result = job.work()
            except Exception as error:
                job.error = error
            self._finished.append(job)
            try:
                self._token.run_sync_soon(self._drain, idempotent=True)
            except trio.RunFinishedError:
                return
            # A job may hold megabytes: not longer than needed.
            del job

    def _drain(self) -> None:
        while self._finished:
            job = self._finished.popleft()
            try:
                job.done(job.result, job.error)
            except Exception:
                # A defect in one completion must not end the mount.
                log.exception("defect in the completion of a worker's job")

    def close(self) -> None:
        """Let the threads finish what is queued, and end them.  Blocks.

        Whoever still waits is told that it is too late: what they would do next needs a store
        that is about to be closed.
        """
        # Who was given a result just now may go on and submit what no thread would ever do.
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for job in self._finished:
            job.result, job.error = None, job.error or _too_late()
        self._drain()


def _too_late() -> DaemonError:
    return DaemonError("the store is being closed")
