"""COPY: a file under a second name, with the same content, in one step and at no cost of size.

The copy is a new inode that refers to the same blob (cafs.copying) and takes the place of what
had the name: whoever reads the old one goes on reading it, and its other hard links keep it.
What is refused, and in which order, follows nginx's dav module, but that a copy onto itself is
403 and leaves the file alone.  Invariant: a destination is what it was, or the whole copy.
"""

from __future__ import annotations

import errno
import stat
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from cafs.copying import copy_directory, copy_file, discard
from cafs.errors import CafsError, FsError, UsageError
from cafs.http import answers
from cafs.http.body import has_body
from cafs.http.depth import INFINITY, depth_of
from cafs.http.paths import TreePath, below, normalized
from cafs.http.removal import require_change
from cafs.http.site import Site, origin
from cafs.notices import Change, EntryChanged, InodeChanged
from cafs.tree import walk
from cafs.tree.walk import Place
from cafs.types import ROOT, Ino


class Wish(NamedTuple):
    """What a request asks for, apart from its source."""

    destination: TreePath
    overwrite: bool


async def handle(site: Site, request: Request, path: TreePath) -> Response:
    """Answer one request: 204 for a file, 201 for a directory, or why not."""
    if has_body(request):
        return answers.text(415, "415: COPY takes no body")
    wish = _read(request, path)
    if isinstance(wish, Response):
        return wish
    target = _target(site, wish.destination)
    refusal = _refused_target(site, wish, target)
    if refusal is not None:
        return refusal
    source = site.locate(path)
    ino = site.find(path)
    if target is None:
        return answers.text(409, "409: the directory for the copy is not there")
    refusal = _refused_source(site, path, source, ino, target)
    if refusal is not None:
        return refusal
    store = site.store
    store.space.admit(0)
    await store.make_room()
    caller = site.caller
    is_directory = stat.S_ISDIR(site.tree.inodes.get(ino).mode)
    subdirectories = 0
    try:
        if is_directory:
            copy, subdirectories = await copy_directory(store, ino, caller.uid, caller.gid)
        else:
            copy = await copy_file(store, ino, caller.uid, caller.gid)
    except FsError as error:
        if error.errno == errno.ESTALE:
            return answers.text(404, "404: it was removed while it was copied")
        raise
    try:
        # The tree may have changed meanwhile.  No checkpoint from here to the placing.
        target = _target(site, wish.destination)
        refusal = _refused_target(site, wish, target)
        if refusal is not None:
            return refusal
        if target is None:
            return answers.text(409, "409: the directory for the copy is not there")
        changes: list[Change] = []
        try:
            _place(site, copy, target, subdirectories, changes)
        except CafsError:
            # What was there may be gone.
            await store.notices.tell(changes)
            raise
    finally:
        discard(store, copy)
    await site.changed(changes)
    return answers.empty(201 if is_directory else 204)


def _read(request: Request, path: TreePath) -> Wish | Response:
    """Read the headers."""
    told = request.headers.get("destination")
    if told is None:
        return answers.text(400, "400: COPY needs a Destination")
    destination = _destination(request, told)
    if destination is None:
        return answers.text(400, "400: the Destination is not on this server")
    if destination.slash != path.slash:
        return answers.text(409, "409: either both paths end with a slash or none does")
    if depth_of(request) not in (None, "0", INFINITY):
        return answers.text(400, "400: COPY takes Depth 0 or infinity")
    overwrite = request.headers.get("overwrite", "T").upper()
    if overwrite not in ("T", "F"):
        return answers.text(400, "400: Overwrite is T or F")
    return Wish(destination, overwrite == "T")


def _destination(request: Request, told: str) -> TreePath | None:
    """The path in a Destination header; None when it is of another server or location."""
    raw = told.strip()
    if not raw.startswith("/"):
        scheme, separator, rest = raw.partition("://")
        host, slash, raw = rest.partition("/")
        own_scheme, _, own_host = origin(request).partition("://")
        if not separator or not slash or scheme != own_scheme:
            return None
        if _host(host) != _host(own_host):
            return None
        raw = "/" + raw
    prefix = f"/{request.scope['location']}/".encode()
    try:
        path = normalized(raw.encode("latin-1"))
    except (UsageError, UnicodeEncodeError):
        return None
    return below(path, prefix) if path.startswith(prefix) else None


def _host(text: str) -> str:
    """A host without its port, which nginx does not compare either."""
    host, separator, port = text.rpartition(":")
    return (host if separator and port.isdecimal() else text).lower()


def _target(site: Site, destination: TreePath) -> Place | None:
    """Where the copy is to be; None when the directory for it is not there."""
    try:
        return site.locate(destination)
    except FsError as error:
        if error.errno == errno.ENOENT:
            return None
        if error.errno == errno.ENOTDIR:
            raise FsError(errno.EEXIST, "a part of the Destination is a file") from None
        raise


def _refused_target(site: Site, wish: Wish, target: Place | None) -> Response | None:
    if target is None or target.ino is None:
        return None
    is_directory = stat.S_ISDIR(site.tree.inodes.get(target.ino).mode)
    if is_directory != wish.destination.slash:
        what = "a directory" if is_directory else "a file"
        return answers.text(409, f"409: the Destination is {what}")
    if not wish.overwrite:
        return answers.text(412, "412: the Destination is there already")
    return None


def _refused_source(
    site: Site, path: TreePath, source: Place, ino: Ino, target: Place
) -> Response | None:
    attr = site.tree.inodes.get(ino)
    is_directory = stat.S_ISDIR(attr.mode)
    if not is_directory and path.slash:
        return answers.text(404, "404: it is a file, and the path ends with a slash")
    if is_directory and not path.slash:
        return answers.text(400, "400: it is a directory, and the path ends without a slash")
    if not is_directory and not stat.S_ISREG(attr.mode):
        return answers.text(404, "404: it is no file")
    same = source[:2] == target[:2] or target.ino == ROOT
    if same or (is_directory and _one_in_the_other(site, ino, target)):
        return answers.text(403, "403: source and Destination are the same, or one in the other")
    site.require(ino, walk.READ | (walk.SEARCH if is_directory else 0))
    return None


def _one_in_the_other(site: Site, source: Ino, target: Place) -> bool:
    return _is_above(site, source, target.parent) or (
        target.ino is not None and _is_above(site, target.ino, source)
    )


def _is_above(site: Site, directory: Ino, ino: Ino) -> bool:
    """Whether *ino*, a directory, is *directory* or lies below it."""
    while ino not in (directory, ROOT):
        ino = Ino(site.tree.inodes.get(ino).aux)
    return ino == directory


def _place(
    site: Site, copy: Ino, target: Place, subdirectories: int, changes: list[Change]
) -> None:
    """Put the copy in its place, and say in *changes* what is to be made known."""
    require_change(site, target.parent, target.ino)
    changes += (EntryChanged(target.parent, target.name), InodeChanged(target.parent))
    if target.ino is not None:
        changes.append(InodeChanged(target.ino))
        if stat.S_ISDIR(site.tree.inodes.get(target.ino).mode):
            site.remove_if_unused(site.tree.detach(target.parent, target.name))
    site.remove_if_unused(site.tree.place(copy, target.parent, target.name, subdirectories))
