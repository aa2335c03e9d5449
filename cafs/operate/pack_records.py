"""What lies in a sealed pack: its sidecar's records.

For whoever gives the space of dead chunks back.  A sidecar that the disk has damaged or lost is
written anew from the index, so that it keeps no space back.
"""

from __future__ import annotations

import logging
from functools import partial

from cafs.blobs import packstart, sidecar
from cafs.blobs.sidecar import SidecarRecord
from cafs.errors import CafsError, DamagedError
from cafs.index.overlay import Overlay
from cafs.store import Store
from cafs.types import PackNo

log = logging.getLogger(__name__)


async def records_in(store: Store, pack: PackNo) -> list[SidecarRecord]:
    """The records of a sealed pack's sidecar.

    Raises DamagedError, DiskError and kin if neither the sidecar nor the index can tell.
    """
    path = store.packs.sidecar_path(pack)
    try:
        return await store.workers.run(partial(_read, path))
    except CafsError as error:
        if pack in store.chunks.landing_packs():
            # No record names these, so the index does not have all that the sidecar must have.
            raise
        log.warning("%s; it is written anew from the index", error)
    # A thread can only read what is committed; nothing new comes into a sealed pack.
    await store.commit()
    await store.workers.run(partial(_rewrite, store, pack))
    return await store.workers.run(partial(_read, path))


def _read(path: str) -> list[SidecarRecord]:
    found = sidecar.read_sidecar(path)
    records = list(found)
    if found.torn is not None:
        raise DamagedError(found.torn)
    return records


def _rewrite(store: Store, pack: PackNo) -> None:
    overlay = Overlay(store.environment)
    try:
        packstart.rewrite_sidecar(store.packs, overlay, pack)
    finally:
        overlay.close()
