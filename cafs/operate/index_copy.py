"""A hot copy of the index, from which ``cafs rebuild`` brings back what a bad disk took.

Made now and then while the store is mounted, by a child process of its own, so that neither the
event loop nor commits wait for it.  The pages are looked at first: a damaged index must not
take the place of the last good copy.  Invariant: ``STORE/index-copy/data.mdb`` is whole, and is
one commit.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Final

import lmdb
import trio

from cafs import storefile
from cafs.errors import CafsError, DaemonError, DiskFullError, IndexDamagedError, from_os_error
from cafs.index import copyplace, fence, pages
from cafs.store import Store

log = logging.getLogger(__name__)

_DAMAGED_EXIT: Final = 8
_MARGIN: Final = 64 << 20
"""Bytes that must be left on the disk besides the copy."""


class IndexCopier:
    """Copies the index of a store now and then.  Belongs to the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._copied = -1
        """The generation that the last copy has."""
        self._tried_ns = 0
        """When a copy was last due, whatever came of it."""
        if (store.path / copyplace.DIRECTORY / pages.FILE).exists():
            store.blobs.aged.guard_copy(resume=True)

    async def run(self) -> None:
        """Look at the pages there was no time for, then copy each interval, for ever."""
        if not self._store.index_audited:
            await self._child("audit")
        while True:
            await trio.sleep(self.due_s())
            self._tried_ns = self._store.clock.now_ns()
            changed = self._store.counters.generation != self._copied
            if changed or self._store.blobs.aged.only_in_copy():
                await self.once()

    def due_s(self) -> float:
        """How long until the next copy: an interval after the last one, whoever made that.

        One that was never made is due an interval after the store was.  So a daemon that is
        started again and again within the interval has one, too.
        """
        store = self._store
        last_ns = copyplace.made_ns(store.path)
        if last_ns is None:
            try:
                last_ns = (store.path / storefile.NAME).stat().st_mtime_ns
            except OSError:
                last_ns = store.clock.now_ns()
        passed_s = (store.clock.now_ns() - max(last_ns, self._tried_ns)) / 1e9
        interval_s = store.options.index_copy_interval
        return min(max(0.0, interval_s - passed_s), interval_s)

    async def once(self) -> bool:
        """Make a copy now; whether there is a new one.  What keeps it from that is logged."""
        store = self._store
        aged = store.blobs.aged
        kept = aged.only_in_copy()
        # What a child has left that was killed takes as much room as the next copy.
        await trio.to_thread.run_sync(copyplace.clear, store.path)
        store.space.changed()
        needed = store.environment.used_bytes()
        if store.space.read_only or not store.space.find_room(needed + _MARGIN):
            log.info("no copy of the index: the disk has no room for it")
            # Room is what the disk needs first.
            aged.copied(kept)
            return False
        if kept:
            try:
                await store.commit()
            except CafsError as error:
                log.warning("no copy of the index: %s", error)
                return False
        generation = store.counters.generation
        if await self._child("copy") != 0:
            return False
        self._copied = generation
        aged.copied(kept)
        aged.guard_copy(resume=False)
        return True

    async def let_go(self) -> None:
        """Have the sweep take what is kept only because the last copy names it, by a new copy."""
        if self._store.blobs.aged.only_in_copy():
            await self.once()

    async def _child(self, what: str) -> int:
        path = str(self._store.path)
        command = [sys.executable, "-m", __name__, what, path, str(os.getpid())]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        try:
            done = await trio.run_process(
                command, capture_stdout=True, capture_stderr=True, check=False, env=environment
            )
        except OSError as error:
            log.warning("no copy of the index: %s", error)
            return 1
        text = (done.stdout + done.stderr).decode(errors="replace").strip()
        for line in text.splitlines()[-fence.FAULTS_LOGGED :]:
            log.error("%s; what to do: unmount, then: cafs check %s", line, self._store.path)
        return done.returncode


def copy_index(store: Path, parent: int | None = None) -> None:
    """Put a copy of the newest commit into STORE/index-copy, durably.

    Not in a process that has the index open.  *parent*: the process for which it is made; without
    it there is none.  Raises IndexDamagedError (the old copy stays), DaemonError, DiskFullError
    and its kin.
    """
    faults = pages.audit(store / "index").faults
    if faults:
        raise IndexDamagedError("; ".join(str(fault) for fault in faults[:5]))
    place = store / copyplace.DIRECTORY
    try:
        with copyplace.making(store) as new:
            environment = lmdb.open(
                str(store / "index"), map_size=1 << 40, readonly=True, create=False, readahead=True
            )
            try:
                environment.copy(str(new), compact=True)
            finally:
                environment.close()
            fd = os.open(new / pages.FILE, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fchmod(fd, 0o600)
                os.fsync(fd)
            finally:
                os.close(fd)
            if parent is not None and os.getppid() != parent:
                # The next daemon does not know what only this copy names, nor keeps it.
                raise DaemonError("the daemon that wanted a copy of the index is gone")
            os.rename(new / pages.FILE, place / pages.FILE)
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as error:
        raise from_os_error(error, f"copy the index to {place}") from error
    except lmdb.Error as error:
        raise DiskFullError(f"copy the index to {place}: {error}") from error


def main(what: str, store: str, parent: str) -> int:
    """What the child does; says on stdout what is wrong."""
    os.nice(10)
    try:
        if what == "copy":
            copy_index(Path(store), int(parent))
            return 0
        found = pages.audit(Path(store) / "index")
        for fault in found.faults:
            sys.stdout.write(f"{fault}\n")
        # Links are fenced off below a snapshot that this process no longer holds, so only
        # the next start does that, when nobody writes.
        return _DAMAGED_EXIT if found.faults else 0
    except CafsError as error:
        sys.stdout.write(f"{error}\n")
        return error.meaning.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
