"""Making an empty store."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cafs import storefile
from cafs.blobs import fileheader
from cafs.clock import SystemClock
from cafs.config import StoreParams
from cafs.durable import Disk
from cafs.errors import AccessError, CafsError, IndexDamagedError, StoreExistsError, from_os_error
from cafs.index import layout
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.counters import Counters
from cafs.index.env import Environment
from cafs.index.overlay import Layer
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.tree.tree import DIRECTORY_SIZE
from cafs.types import NO_BLOB, ROOT, Attr
from cafs.units import plural

DIRECTORIES = ("index", "packs", "spool")


def create(path: Path, params: StoreParams) -> None:
    """Make an empty store in a directory that is empty or not there.

    What a first try that was killed has left is taken over; a store that has lost its
    ``store.toml`` is not.  Raises StoreExistsError, DiskFullError and its kin.  ``store.toml`` is
    written last: without it there is no store.
    """
    storefile.check_path(path)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        leftovers = set(os.listdir(path)) - {*DIRECTORIES, "lock", "reserve", "lost+found"}
        if storefile.is_store(path):
            raise StoreExistsError(f"{path} already has a store")
        _refuse_remains(path)
        if leftovers:
            raise StoreExistsError(f"{path} is not empty: it has {sorted(leftovers)[0]}")
        lock = StoreLock(path)
        try:
            for name in DIRECTORIES:
                (path / name).mkdir(mode=0o700, exist_ok=True)
            _write_first_commit(path, lock)
            disk = Disk()
            # A store whose file is on disk has all of it there.
            disk.sync_directory(path / "index")
            with contextlib.suppress(AccessError):
                # Who may not read the directory may not sync it.
                disk.sync_directory(path.parent)
            content = storefile.StoreFile(secrets.token_bytes(16), layout.FIRST_VERSION, params)
            disk.write_file(path / storefile.NAME, storefile.render(content))
        finally:
            lock.release()
    except FileExistsError as error:
        raise StoreExistsError(f"{error.filename} is not a directory") from None
    except PermissionError as error:
        raise AccessError(
            f"make a store in {path}: {error.strerror}",
            advice="choose a directory that this user may write to",
        ) from error
    except OSError as error:
        raise from_os_error(error, f"make a store in {path}") from error


def _refuse_remains(path: Path) -> None:
    """Raise StoreExistsError for a store without its ``store.toml``: it can be saved."""
    packs = sorted((path / "packs").glob("*.pack"))
    commits = 0 if packs else _commits(path / "index")
    if not packs and not commits:
        return
    found = f"the pack {packs[0].name}" if packs else f"an index with {plural(commits, 'commit')}"
    its_id = ", with the id that each pack's header has"
    if packs:
        try:
            with packs[0].open("rb") as file:
                head = file.read(fileheader.HEADER_LENGTH)
            header = fileheader.decode(fileheader.PACK_MAGIC, head, str(packs[0]))
            its_id = f"; its id is {header.store_id.hex()}"
        except (OSError, CafsError):
            pass
    raise StoreExistsError(
        f"{path} has {found}, but {storefile.NAME} is lost; nothing was changed",
        advice=f"restore {path / storefile.NAME} from a backup{its_id}; "
        'see "A lost store.toml" in docs/operations.md',
    )


def _commits(index: Path) -> int:
    """Commits that an index has after the first one, which makes it."""
    try:
        environment = Environment(index)
    except IndexDamagedError:
        # There is none, or not all of its tables yet.  One that is damaged the writer refuses.
        return 0
    try:
        with environment.begin() as txn:
            record = environment.get(txn, layout.META, COUNTERS_KEY)
        return Counters.decode(record).generation if record is not None else 0
    finally:
        environment.close()


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
