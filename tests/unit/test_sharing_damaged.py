"""Content that is written again while a record of its first copy cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cafs.blobs import recipe
from cafs.index import layout
from cafs.store import Store
from cafs.types import ROOT, BlobNo
from cafs.view import View
from tests.unit.damaged_index import flip
from tests.unit.small_store import in_store, lookup, make, noise, write

FILES = {b"a/b/large": noise(1, 3_000_000), b"a/middle": noise(2, 40_000)}


def _record(_view: View, blob: BlobNo) -> bytes:
    return layout.u48(blob)


def _row(view: View, blob: BlobNo) -> bytes:
    prefix = layout.u48(blob)
    keys = [key for key, _ in view.overlay.scan(layout.RECIPES, prefix, prefix)]
    assert len(keys) > 2
    return keys[len(keys) // 2]


def _chunk(view: View, blob: BlobNo) -> bytes:
    part = next(part for _, part in view.blobs.parts(blob, 0, 1) if part.kind == recipe.CHUNK)
    return layout.u48(part.ref)


@pytest.mark.parametrize(
    ("database", "key", "file", "more"),
    [
        ("blobs", _record, b"a/middle", b""),
        ("recipes", _row, b"a/b/large", b""),
        ("chunks", _chunk, b"a/b/large", b"and more"),
    ],
)
def test_it_is_stored_anew(
    tmp_path: Path, database: str, key: Callable[[View, BlobNo], bytes], file: bytes, more: bytes
) -> None:
    """*more* makes it another blob, of the same chunks."""
    path = make(tmp_path / "store")
    blob = lookup(path, file)[1].blob
    with View(path) as view:
        broken = key(view, blob)
    flip(path / "index", database, broken)
    content = FILES[file] + more

    async def again(store: Store) -> None:
        ino = await write(store, ROOT, b"again", content)
        await store.sync_file(ino)

    async def look(store: Store) -> bytes:
        ino = store.tree.lookup(ROOT, b"again")
        assert ino is not None
        await store.hasher.catch_up()
        record = store.blobs.get(store.tree.inodes.get(ino).blob)
        assert not record.flags & layout.BLOB_UNHASHED
        return await store.contents.read(ino, 0, len(content) + 1)

    in_store(path, again)
    assert in_store(path, look) == content
