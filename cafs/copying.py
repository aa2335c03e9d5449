"""Copies of files and directories that share all content with what they were made from.

A copy is a new inode that refers to the same blob, so it costs the same whatever its size; later
changes of either do not touch the other.  What is made here has no name yet and goes with a
crash; putting it in place (Tree.place) is the caller's, in one step.  Invariant: the content of a
copy is what its source had at one moment, whole.
"""

from __future__ import annotations

import errno
import stat
from itertools import islice

import trio

from cafs.errors import FsError
from cafs.index.layout import BLOB_UNHASHED
from cafs.store import Store
from cafs.types import NO_BLOB, Attr, BlobNo, Ino

DIGESTS_S = 1.0
"""How long a copy waits for the digests of content that was just written."""
HASHED_AT_ONCE = 16 << 20
"""Bytes of content without digests that are read back for them: a matter of milliseconds."""
FORKED_AT_ONCE = 16 << 20
"""Bytes of content without digests whose recipe is copied in one go."""
PARTS_AT_ONCE = 128
"""Parts of a longer recipe that are copied between two checkpoints."""
TRIES = 3
"""How often the copy of a long recipe begins anew because the file is being changed."""
AT_ONCE = 64
"""Entries of a directory between two checkpoints."""


async def copy_file(store: Store, source: Ino, uid: int, gid: int) -> Ino:
    """A nameless regular file with the content, permissions and mtime of *source*.

    Raises FsError(ESTALE) when that is gone meanwhile, DiskFullError and its kin.
    """
    tree = store.tree
    await _settled(store, source)
    copy = tree.nameless(stat.S_IFREG | tree.inodes.get(source).mode & 0o777, uid, gid)
    try:
        attr = await _share(store, source, copy)
    except BaseException:
        discard(store, copy)
        raise
    made = tree.inodes.get(copy)
    tree.inodes.put(copy, made._replace(mtime_ns=attr.mtime_ns))
    return copy


async def _settled(store: Store, source: Ino) -> None:
    """Bring what was written to a file into its blob, and wait a while for that blob's digests:
    one that has them can be shared.
    """
    if store.contents.has_draft(source):
        await store.contents.settle(source)
        with trio.move_on_after(DIGESTS_S):
            await store.contents.finished(source)
    attr = store.tree.inodes.get(source)
    if not _is_shareable(store, attr.blob) and attr.size <= HASHED_AT_ONCE:
        await store.hasher.now(attr.blob, source)


def _is_shareable(store: Store, blob: BlobNo) -> bool:
    return blob == NO_BLOB or not store.blobs.get(blob).flags & BLOB_UNHASHED


async def _share(store: Store, source: Ino, copy: Ino) -> Attr:
    """Give *copy* the content of *source*; attributes of *source* at the moment that it is of."""
    tree, blobs = store.tree, store.blobs
    for _ in range(TRIES):
        # No checkpoint between this and a look at the recipe: it is never met half-way, with
        # some of what was written in it and some not.
        await store.contents.settle(source)
        before = store.contents.attr(source)
        version = _version(store, before)
        while not _is_shareable(store, before.blob) and before.size > FORKED_AT_ONCE:
            # It is still being hashed, or written: its parts are listed once more, some at a
            # time.  So it is on disk at any moment as far as it has come.
            fork = tree.inodes.get(copy).blob or blobs.begin(copy)
            more = blobs.fork_more(fork, before.blob, PARTS_AT_ONCE)
            tree.publish(copy, fork, blobs.get(fork).size)
            if not more:
                return before
            await store.make_room()
            await trio.lowlevel.checkpoint()
            if _version(store, store.contents.attr(source)) != version:
                break
        else:
            break
        # It has changed meanwhile, or has its digests now: from the beginning.
        tree.publish(copy, NO_BLOB, 0)
    else:
        await store.contents.settle(source)
    # No checkpoint from here on: the blob is not referred to before the end.
    before = tree.inodes.get(source)
    if before.blob != NO_BLOB:
        shared = _is_shareable(store, before.blob)
        blob = before.blob if shared else blobs.fork(before.blob, copy)
        tree.publish(copy, blob, before.size)
    return before


def _version(store: Store, attr: Attr) -> tuple[BlobNo, int, int, int]:
    """What of a file is different when its content is.

    What was written before its attributes were asked for may come into its blob later.
    """
    return attr.blob, attr.size, attr.mtime_ns, store.blobs.edits(attr.blob)


async def copy_directory(store: Store, source: Ino, uid: int, gid: int) -> tuple[Ino, int]:
    """A nameless directory with copies of all that is below *source*; and how many directories
    it has itself.

    Symbolic links are copied as such; device nodes, FIFOs and sockets are left out.  Entries
    that come or go meanwhile are copied or not.  Raises as copy_file().
    """
    tree = store.tree
    mode = stat.S_IFDIR | tree.inodes.get(source).mode & 0o777
    root = tree.nameless(mode, uid, gid)
    subdirectories = 0
    try:
        left = [(source, root)]
        while left:
            below, copy = left.pop()
            made = await _copy_entries(store, below, copy, uid, gid)
            subdirectories += len(made) if copy == root else 0
            left += made
        if tree.detached.holds(source):
            # It was removed meanwhile, and what was met of it may be a part.
            raise FsError(errno.ESTALE, "it was removed while it was copied")
    except BaseException:
        discard(store, root)
        raise
    return root, subdirectories


async def _copy_entries(
    store: Store, source: Ino, copy: Ino, uid: int, gid: int
) -> list[tuple[Ino, Ino]]:
    """Copy what is in a directory; its subdirectories with their copies, which are empty yet."""
    tree = store.tree
    made: list[tuple[Ino, Ino]] = []
    after = 0
    while True:
        entries = list(islice(tree.listing(source, after), AT_ONCE))
        if not entries:
            return made
        after = entries[-1].cookie
        for entry in entries:
            attr = tree.inodes.find(entry.ino)
            if attr is None:
                continue
            if stat.S_ISDIR(attr.mode):
                new = tree.nameless(stat.S_IFDIR | attr.mode & 0o777, uid, gid)
                made.append((entry.ino, new))
            elif stat.S_ISREG(attr.mode):
                try:
                    new = await copy_file(store, entry.ino, uid, gid)
                except FsError:
                    # It went while its content was being settled.
                    continue
            elif stat.S_ISLNK(attr.mode):
                new = tree.nameless(attr.mode, uid, gid, tree.readlink(entry.ino))
            else:
                continue
            tree.place_below(new, copy, entry.name)
        await store.make_room()
        await trio.lowlevel.checkpoint()


def discard(store: Store, ino: Ino) -> None:
    """Let go of a nameless inode that is not to get a name; a directory is swept later."""
    attr = store.tree.inodes.find(ino)
    if attr is None or attr.nlink:
        return
    if stat.S_ISDIR(attr.mode) and attr.blob:
        store.tree.detached.add(ino)
    else:
        store.nameless.forget(ino)
