"""Giving space back now, because somebody asked: the orders that the background work is made of.

The same steps whether a daemon does them on request or a command opens the store itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cafs.blobs.fileheader import HEADER_LENGTH
from cafs.config import MountOptions
from cafs.index.copyplace import DIRECTORY
from cafs.operate.compact import Compactor, OnProgress
from cafs.operate.index_copy import IndexCopier
from cafs.operate.sweep import Sweeper
from cafs.store import Store, open_store


async def sweep_now(
    store: Store, sweeper: Sweeper, copier: IndexCopier, on_progress: OnProgress
) -> dict[str, Any]:
    """Take out all that nothing refers to; what it was, in fields of an answer."""
    await store.contents.settle_all()
    await copier.let_go()
    swept = await sweeper.once()
    await store.commit()
    dead = sum(
        max(0, record.size - record.live_bytes - HEADER_LENGTH)
        for _, record in store.pack_table.items()
    )
    return {"swept_count": swept, "dead_bytes": dead}


async def compact_now(
    store: Store,
    sweeper: Sweeper,
    compactor: Compactor,
    copier: IndexCopier,
    grace_s: float | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Sweep, rewrite every pack with something dead in it, shrink the index and its copy."""
    grace = store.options.grace if grace_s is None else grace_s
    swept = await sweep_now(store, sweeper, copier, on_progress)
    freed = await compactor.whole(grace, on_progress)
    await store.commit()
    index = await store.shrink_index()
    if (store.path / DIRECTORY).exists():
        # The old copy may be as large as the index was, and names packs that are gone.
        await copier.once()
    del swept["dead_bytes"]
    left = [{"pack": f"{number:08x}", "why": why} for number, why in sorted(compactor.left.items())]
    packs = {"left_packs_count": len(left), "left_packs": left}
    return swept | {"freed_bytes": freed, "freed_index_bytes": index} | packs


async def sweep_offline(path: Path, options: MountOptions, on_progress: OnProgress) -> Any:
    """sweep_now() on a store that no daemon has.  Raises StoreBusyError."""
    async with open_store(path, options) as store:
        return await sweep_now(store, Sweeper(store), IndexCopier(store), on_progress)


async def compact_offline(
    path: Path, options: MountOptions, grace_s: float | None, on_progress: OnProgress
) -> Any:
    """compact_now() on a store that no daemon has.  Raises StoreBusyError."""
    async with open_store(path, options) as store:
        work = Sweeper(store), Compactor(store), IndexCopier(store)
        return await compact_now(store, *work, grace_s, on_progress)
