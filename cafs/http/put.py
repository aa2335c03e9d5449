"""PUT: a blob comes in, is put in place in one step, and is on disk when the answer goes out.

Directories on the way are made, as create_full_put_path does.  Invariant: whatever ends a PUT
before its answer, the tree is as it was, but for directories that were missing.
"""

from __future__ import annotations

import errno
import stat

import trio
from starlette.requests import Request
from starlette.responses import Response

from cafs import upload
from cafs.errors import CafsError, FsError
from cafs.http import answers, httpdate
from cafs.http.paths import TreePath, escaped
from cafs.http.removal import require_change
from cafs.http.site import Site, describe, origin
from cafs.notices import Change, EntryChanged, InodeChanged
from cafs.tree import walk
from cafs.tree.tree import NAME_MAX as COMPONENT_MAX
from cafs.tree.walk import Place
from cafs.types import ROOT, TIME_MAX_NS, Attr, Ino
from cafs.upload import Upload

NAME_MAX = 244
"""nginx over the same tree needs eleven bytes more for its temporary names."""

_STATUS = {errno.EISDIR: 409, errno.ENOTEMPTY: 409, errno.ENOSPC: 507, errno.EROFS: 503}
"""What an errno of the tree becomes; all others are 500, as with nginx."""


class _WentAwayError(Exception):
    """The client is gone, or stopped sending."""


async def handle(site: Site, request: Request, path: TreePath) -> Response:
    """Answer a PUT."""
    refusal = _refused(site, request, path)
    if refusal is not None:
        return refusal
    try:
        _look(site, path)
        return await _store(site, request, path)
    except FsError as error:
        return answers.failed(error, describe(request), _STATUS.get(error.errno, 500))
    except _WentAwayError:
        # For who is slow; to who is gone nothing is sent.
        return answers.text(408, "408: the body did not come")


def _refused(site: Site, request: Request, path: TreePath) -> Response | None:
    headers = request.headers
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        return answers.text(411, "411: how long is the body?")
    if path.slash:
        return answers.text(409, "409: a name that ends in a slash is a directory's")
    if "content-range" in headers:
        return answers.text(501, "501: a part of a file cannot be put")
    limit = site.options.max_upload
    if limit and length is not None and int(length) > limit:
        return _too_large(limit)
    if len(path.names[-1]) > NAME_MAX:
        return answers.text(500, f"500: a name may have {NAME_MAX} bytes")
    return None


def _too_large(limit: int) -> Response:
    return answers.text(413, f"413: a body may have {limit} bytes (http.max_upload)")


def _look(site: Site, path: TreePath) -> None:
    """Find out what can be known before the body comes.  Raises FsError."""
    # Before directories are made for it.
    if any(len(name) > COMPONENT_MAX for name in path.names):
        raise FsError(errno.ENAMETOOLONG)
    try:
        place = walk.locate(site.tree, path.names, site.caller, follow=True)
    except FsError as error:
        if error.errno == errno.ENOENT:
            # A directory is missing, and will be made.
            return
        raise
    if place.ino is not None and stat.S_ISDIR(site.tree.inodes.get(place.ino).mode):
        raise FsError(errno.EISDIR, "there is a directory of that name")


async def _store(site: Site, request: Request, path: TreePath) -> Response:
    owner, options = site.caller, site.options
    async with upload.begin(site.store, options.file_mode, owner.uid, owner.gid) as incoming:
        while (data := await _next(site, request)) is not None:
            if options.max_upload and incoming.size + len(data) > options.max_upload:
                return _too_large(options.max_upload)
            if data:
                await incoming.write(data, last=request.scope["body_ended"])
        await incoming.finish()
        # No checkpoint from here until all of the tree is as it should be.
        changes: list[Change] = []
        try:
            created = _place(site, incoming, path, _date(request), changes)
        except CafsError:
            # Directories that were made stay, and the kernel may know that they are not there.
            await site.store.notices.tell(changes)
            raise
        await site.changed(changes)
    if not created:
        return answers.empty(204)
    location = origin(request) + escaped(request.scope["normalized"])
    return answers.empty(201, {"location": location, "content-length": "0"})


async def _next(site: Site, request: Request) -> bytes | None:
    """The next bytes of the body; None at its end."""
    if request.scope.get("body_ended"):
        return None
    with trio.move_on_after(site.options.client_timeout) as scope:
        message = await request.receive()
    if scope.cancelled_caught or message["type"] == "http.disconnect":
        request.scope["stalled"] = True
        raise _WentAwayError
    request.scope["body_ended"] = not message.get("more_body", False)
    body: bytes = message.get("body", b"")
    return body


def _date(request: Request) -> int | None:
    """The modification time that the client gives, in ns."""
    seconds = httpdate.parse(request.headers.get("date", ""))
    # HTTP's dates go to the year 9999, those of the index to 2262.
    return None if seconds is None else min(seconds * 10**9, TIME_MAX_NS)


def _place(
    site: Site,
    incoming: Upload,
    path: TreePath,
    mtime_ns: int | None,
    changes: list[Change],
) -> bool:
    """Put an upload in place, directories included; whether the name is new.  Raises FsError."""
    tree, name = site.tree, path.names[-1]
    parent = _directory(site, path.names[:-1], changes)
    there = walk.locate(tree, path.names, site.caller, follow=False).ino
    old: Attr | None = tree.inodes.get(there) if there is not None else None
    if old is not None and stat.S_ISDIR(old.mode):
        raise FsError(errno.EISDIR, "there is a directory of that name")
    require_change(site, parent, there)
    gone = incoming.place(parent, name, mtime_ns)
    changes += (EntryChanged(parent, name), InodeChanged(parent))
    if there is not None and gone is None:
        # It lives on under other names.
        changes.append(InodeChanged(there))
    site.remove_if_unused(gone)
    return there is None


def _directory(site: Site, names: tuple[bytes, ...], changes: list[Change]) -> Ino:
    """The directory at a path, made if it is missing, with those above it."""
    if not names:
        return ROOT
    there, place = _deepest(site, names)
    ino = place.ino
    if ino is None:
        ino = _make(site, place.parent, place.name, changes)
    elif not stat.S_ISDIR(site.tree.inodes.get(ino).mode):
        raise FsError(errno.ENOTDIR, "a part of the path is a file")
    for name in names[there:]:
        ino = _make(site, ino, name, changes)
    return ino


def _deepest(site: Site, names: tuple[bytes, ...]) -> tuple[int, Place]:
    """Of how many names the longest beginning is of which only the last may be missing."""
    found = _located(site, names)
    if found is not None:
        return len(names), found
    # Not one name after the other: a client may send thousands.
    low, high = 1, len(names)
    place = walk.locate(site.tree, names[:1], site.caller, follow=True)
    while high - low > 1:
        middle = (low + high) // 2
        found = _located(site, names[:middle])
        if found is None:
            high = middle
        else:
            low, place = middle, found
    return low, place


def _located(site: Site, names: tuple[bytes, ...]) -> Place | None:
    try:
        return walk.locate(site.tree, names, site.caller, follow=True)
    except FsError as error:
        if error.errno != errno.ENOENT:
            raise
        return None


def _make(site: Site, parent: Ino, name: bytes, changes: list[Change]) -> Ino:
    require_change(site, parent, None)
    owner = site.caller
    mode = stat.S_IFDIR | site.options.directory_mode
    ino = site.tree.create(parent, name, mode, owner.uid, owner.gid)
    changes += (EntryChanged(parent, name), InodeChanged(parent))
    return ino
