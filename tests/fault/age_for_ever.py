"""A process that takes the archives of a store apart and thaws them, until it is killed.

``python -m tests.fault.age_for_ever STORE``; writes a line when it begins, and one at each step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from cafs.types import ROOT
from tests.unit.archived import blob_of, opened


async def _main(path: Path) -> None:
    async with opened(path) as store:
        inos = [entry.ino for entry in store.tree.names.listing(ROOT, 0)]
        print("begun", flush=True)

        async def pace() -> None:
            print("step", flush=True)
            store.committer.urge()
            await trio.lowlevel.checkpoint()

        store.archives.pace = pace
        while True:
            for ino in inos:
                await store.archives.take_apart(blob_of(store, ino))
                await store.commit()
                await store.contents.read(ino, 0, 10)
            for ino in inos:
                await store.archives.thaw(blob_of(store, ino))
                await store.commit()


if __name__ == "__main__":
    trio.run(_main, Path(sys.argv[1]))
