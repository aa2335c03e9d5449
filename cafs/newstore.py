"""Making an empty store."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cafs import storefile
from cafs.clock import SystemClock
from cafs.config import StoreParams
from cafs.durable import Disk
from cafs.errors import StoreExistsError, from_os_error
from cafs.index import layout
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.counters import Counters
from cafs.index.overlay import Layer
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.tree.tree import DIRECTORY_SIZE
from cafs.types import NO_BLOB, ROOT, Attr

DIRECTORIES = ("index", "packs", "spool")


def create(path: Path, params: StoreParams) -> None:
    """Make an empty store in a directory that is empty or not there.

    Raises StoreExistsError, DiskFullError and its kin.  ``store.toml`` is written last: without
    it there is no store.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        leftovers = set(os.listdir(path)) - {*DIRECTORIES, "lock", "reserve", "lost+found"}
        if storefile.is_store(path):
            raise StoreExistsError(f"{path} already has a store")
        if leftovers:
            raise StoreExistsError(f"{path} is not empty: it has {sorted(leftovers)[0]}")
        lock = StoreLock(path)
        try:
            for name in DIRECTORIES:
                (path / name).mkdir(mode=0o700, exist_ok=True)
            _write_first_commit(path, lock)
            content = storefile.StoreFile(secrets.token_bytes(16), layout.FIRST_VERSION, params)
            Disk().write_file(path / storefile.NAME, storefile.render(content))
        finally:
            lock.release()
    except OSError as error:
        raise from_os_error(error, f"make a store in {path}") from error


def _write_first_commit(path: Path, lock: StoreLock) -> None:
    now = SystemClock().now_ns()
    mode = 0o040755
    root = Attr(
        mode, os.geteuid(), os.getegid(), 2, DIRECTORY_SIZE, now, now, now, NO_BLOB, ROOT, 0
    )
    layer: Layer = [{} for _ in layout.DATABASES]
    layer[layout.INODES][layout.u48(ROOT)] = layout.pack_inode(root)
    layer[layout.META][COUNTERS_KEY] = Counters(inodes=1).encode()
    writer = IndexWriter(path / "index", lock.fd)
    try:
        writer.write(layer)
    finally:
        writer.close()
