"""A real store in a thread of its own, for tests that are not asynchronous themselves.

hypothesis calls plain functions; here they reach an open store on its own event loop.  Owns
that thread.  Invariant: after close() or crash() the store's lock is free and no thread is left.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from cafs.config import MountOptions
from cafs.durable import Disk
from cafs.store import Store, open_store

T = TypeVar("T")

QUIET = MountOptions(commit_interval=60.0, ingest_threads=1)
"""No commit happens but those that a test asks for."""


class StoreThread:
    """An open store."""

    def __init__(self, path: Path, options: MountOptions = QUIET, disk: Disk | None = None) -> None:
        self._path = path
        self._options = options
        self._disk = disk
        self._ready = threading.Event()
        self._crashing = False
        self._error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._end: trio.Event | None = None
        self._store: Store | None = None
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    @property
    def store(self) -> Store:
        """The store; only run() may touch what is in it."""
        assert self._store is not None
        return self._store

    def _serve(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        async with open_store(self._path, self._options, disk=self._disk) as store:
            self._store = store
            self._token = trio.lowlevel.current_trio_token()
            self._end = trio.Event()
            self._ready.set()
            await self._end.wait()
            if self._crashing:
                store.close = lambda: abandon(store)  # type: ignore[method-assign]

    def run(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Run *work* on the store's event loop."""
        return trio.from_thread.run(work, self.store, trio_token=self._token)

    def _stop(self) -> None:
        if self._store is None:
            return
        assert self._end is not None
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join()
        self._store = None
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close the store properly; a second call, or one after a crash, does nothing."""
        self._stop()

    def crash(self) -> None:
        """Let the store go as SIGKILL would: nothing more is written or committed."""
        self._crashing = True
        self._stop()


async def abandon(store: Store) -> None:
    """What the kernel does for a killed process: descriptors and children go, that is all."""
    writer = store._writer
    if writer._process is not None:
        writer._process.kill()
    store.let_go()
