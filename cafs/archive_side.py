"""Where a store and its archives meet: what they need of it, and what it asks of them.

Invariant: an archive is never taken apart while somebody writes on top of it, and nobody begins
to write on top of one that is taken apart: it is thawed first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cafs import storefile
from cafs.archive_options import ArchiveOptions
from cafs.archives.archives import Archives, StoreSide
from cafs.errors import CafsError
from cafs.index.layout import AGED_VERSION, BLOB_AGED, META, engine_key
from cafs.types import BlobNo, Ino

if TYPE_CHECKING:
    from cafs.store import Store

log = logging.getLogger(__name__)


def build(store: Store, options: ArchiveOptions) -> Archives:
    """The archives of a store that is being opened."""

    def upgrade() -> None:
        store.file = storefile.upgrade(store.path, AGED_VERSION, store.disk)

    if store.file.format_version < AGED_VERSION and store.overlay.get(META, engine_key(1)):
        # An older store.toml came back from a backup.
        try:
            upgrade()
        except CafsError as error:
            log.warning("the store's version stays what it was: %s", error)

    async def admit() -> None:
        await store.make_room()
        store.space.admit(0)

    async def thaw(blob: BlobNo) -> None:
        await archives.thaw(blob)

    def sent_cached(ino: Ino, starts: int) -> None:
        try:
            attr = store.tree.inodes.find(ino)
            # Meanwhile it may have been removed, written, or thawed.
            if attr is None or not attr.blob or not store.blobs.get(attr.blob).flags & BLOB_AGED:
                return
        except CafsError as error:
            log.debug("what nginx has sent of inode %d is not counted: %s", ino, error)
            return
        archives.cache.use(attr.blob)
        archives.uses.read(attr.blob, 0 if starts else 1, starts or 1)

    contents = store.contents
    archives = Archives(
        StoreSide(
            store.path,
            store.file.id,
            store.disk,
            store.clock,
            store.blobs,
            store.reader,
            contents.ingest,
            store.workers,
            contents.writes_on,
            contents.reads_on,
            upgrade,
            admit,
        ),
        options,
    )
    contents.thaw = thaw
    store.accesses.sent_cached = sent_cached
    store.space.give_way = archives.give_way
    return archives
