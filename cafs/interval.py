"""What is done at each commit interval: files settled, changes committed, the disk looked at.

Belongs to the event loop.  Invariant: what has changed is asked to be committed after
``mount.commit_interval``, however long a single file takes to be stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from cafs.contents import Contents
from cafs.index.committer import Committer
from cafs.index.env import Environment
from cafs.index.overlay import Overlay
from cafs.nameless import Nameless
from cafs.space import Space


class Interval:
    """The regular work of one store."""

    def __init__(
        self,
        contents: Contents,
        committer: Committer,
        overlay: Overlay,
        environment: Environment,
        nameless: Nameless,
        space: Space,
        interval_s: float,
    ) -> None:
        self._contents = contents
        self._committer = committer
        self._overlay = overlay
        self._environment = environment
        self._nameless = nameless
        self._space = space
        self._interval_s = interval_s

    async def run(self) -> None:
        """Do it, for ever; and settle what nobody writes to any more as soon as that is so."""
        contents = self._contents
        due = trio.current_time() + self._interval_s
        while True:
            with trio.move_on_at(due):
                await contents.unfinished.wait()
            if trio.current_time() < due:
                # Outside the scope: it is not to be cancelled half-way.
                await self._committing_meanwhile(contents.settle_unfinished)
                continue
            due = trio.current_time() + self._interval_s
            self._nameless.look_again()
            await self._committing_meanwhile(contents.settle_all)
            if self._space.problem is not None:
                self._space.look()
            self._committer.urge()
            self._overlay.unmark()
            # Pages that a killed process was reading would never be used again.
            self._environment.clear_dead_readers()

    async def _committing_meanwhile(self, settle: Callable[[], Awaitable[None]]) -> None:
        """Settle files: what else has changed does not wait for the slowest of them."""

        async def urge() -> None:
            while True:
                await trio.sleep(self._interval_s)
                self._committer.urge()

        defect: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(urge)
            try:
                await settle()
            except Exception as error:
                # Not in a group, where whoever looks after this task would not know it.
                defect = error
            nursery.cancel_scope.cancel()
        if defect is not None:
            raise defect
