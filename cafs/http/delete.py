"""DELETE: a file, or a directory with all below it, gone for everybody when the answer comes.

Follows nginx's dav module in what is refused and how.  A directory is taken out of the tree in
one step (cafs.tree.detached): the answer does not wait for what was in it, an open file in it
stays readable, and the permissions that count are those of the directory itself and of the one
it is in.  Invariant: 204 is answered after the commit that holds the removal.
"""

from __future__ import annotations

import errno
import stat

from starlette.requests import Request
from starlette.responses import Response

from cafs.errors import FsError, ReadOnlyError
from cafs.http import answers
from cafs.http.body import has_body
from cafs.http.depth import INFINITY, depth_of
from cafs.http.paths import TreePath
from cafs.http.removal import require_change
from cafs.http.site import Site
from cafs.notices import EntryChanged, InodeChanged
from cafs.tree import walk
from cafs.tree.walk import Place
from cafs.types import Attr, Ino


async def handle(site: Site, request: Request, path: TreePath) -> Response:
    """Answer one request: 204, or why not."""
    if has_body(request):
        return answers.text(415, "415: DELETE takes no body")
    store = site.store
    try:
        store.space.admit_removal()
    except ReadOnlyError:
        # What is not there cannot be removed from any disk: the clients need to hear that.
        if site.locate(path).ino is None:
            return answers.text(404, "404: there is nothing")
        raise
    await store.make_room()
    # No checkpoint from here to the removal.
    try:
        place = site.locate(path)
    except FsError as error:
        if error.errno == errno.ENOTDIR:
            return answers.text(409, "409: a part of the path is a file")
        raise
    if place.ino is None:
        return answers.text(404, "404: there is nothing")
    attr = site.tree.inodes.get(place.ino)
    refusal = _refusal(request, path, place, attr)
    if refusal is not None:
        return refusal
    # On a read-only disk, too, what is not there is not there.
    store.space.admit_removal()
    require_change(site, place.parent, place.ino)
    if stat.S_ISDIR(attr.mode):
        if attr.blob:
            site.require(place.ino, walk.WRITE | walk.SEARCH)
        gone: Ino | None = site.tree.detach(place.parent, place.name)
    else:
        ino, last = site.tree.unlink(place.parent, place.name)
        gone = ino if last else None
    site.remove_if_unused(gone)
    if site.options.prune:
        site.pruner.note(path.names[:-1])
    await site.changed(
        [
            EntryChanged(place.parent, place.name),
            InodeChanged(place.ino),
            InodeChanged(place.parent),
        ]
    )
    return answers.empty(204)


def _refusal(request: Request, path: TreePath, place: Place, attr: Attr) -> Response | None:
    depth = depth_of(request)
    if not stat.S_ISDIR(attr.mode):
        if path.slash:
            return answers.text(409, "409: it is a file, and the path ends with a slash")
        if depth not in (None, "0", INFINITY):
            return answers.text(400, "400: a file is deleted with Depth 0 or infinity, or without")
        return None
    if not place.name:
        return answers.text(403, "403: the root of the store is not deleted")
    if not path.slash:
        return answers.text(409, "409: it is a directory, and the path ends without a slash")
    if depth not in (None, INFINITY):
        return answers.text(400, "400: a directory is deleted with Depth infinity, or without")
    return None
