"""PROPFIND: what is in a directory, as both clients of Cloud Foundry parse it.

A long listing is sent as it is made, some entries at a time, so that its length costs neither
memory nor other requests' time.  An entry that comes or goes meanwhile is listed or not; each
other one is listed once, because a listing goes on after a cookie.  Names that begin with a dot
are left out, as nginx does.  Invariant: once 207 is out nothing but damage or a lost connection
ends the document early, and then not cleanly.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cafs.errors import CafsError, DamagedError, FsError
from cafs.http import answers, multistatus
from cafs.http.body import read_body
from cafs.http.depth import INFINITY, depth_of
from cafs.http.multistatus import Resource, Wanted
from cafs.http.paths import TreePath
from cafs.http.site import Site
from cafs.tree import walk
from cafs.types import Attr, DirEntry, Ino

log = logging.getLogger(__name__)

AT_ONCE: Final = 128
"""Entries that are rendered between two checkpoints: a millisecond or two."""
WHOLE_MAX: Final = 1024
"""Answers of up to so many entries are sent with their length."""
TYPE: Final = "text/xml; charset=utf-8"


async def handle(site: Site, request: Request, path: TreePath) -> Response:
    """Answer one request: 207, or why not."""
    depth = depth_of(request)
    if depth is None:
        depth = site.options.propfind_depth
    if depth == INFINITY:
        return answers.text(403, "403: PROPFIND is answered with Depth 0 and 1 only")
    if depth not in ("0", "1"):
        return answers.text(400, "400: Depth is 0 or 1")
    body = await read_body(request, multistatus.BODY_MAX, site.options.client_timeout)
    if body is None:
        return answers.text(413, f"413: the body has more than {multistatus.BODY_MAX} bytes")
    try:
        wanted = multistatus.parse(body)
    except multistatus.MalformedError as error:
        return answers.text(400, f"400: {error}")
    ino = site.find(path)
    attr = site.attr(ino)
    is_directory = stat.S_ISDIR(attr.mode)
    if not is_directory and path.slash:
        raise FsError(errno.ENOTDIR, "it is a file, and the path ends with a slash")
    listing = _Listing(site, request, path, wanted)
    head = multistatus.HEAD + listing.own(attr)
    if depth == "0" or not is_directory:
        return Response(head + multistatus.TAIL, 207, media_type=TYPE)
    site.require(ino, walk.READ | walk.SEARCH)
    begun, after = [head], 0
    for _ in range(WHOLE_MAX // AT_ONCE):
        piece, after = listing.some(ino, after)
        if not after:
            return Response(b"".join([*begun, multistatus.TAIL]), 207, media_type=TYPE)
        begun.append(piece)
        await trio.lowlevel.checkpoint()
    return _LongListing(b"".join(begun), listing, ino, after)


class _LongListing(Response):
    """An answer that is made while it is sent."""

    def __init__(self, begun: bytes, listing: _Listing, directory: Ino, after: int) -> None:
        super().__init__(None, 207, media_type=TYPE)
        del self.headers["content-length"]
        self._begun = begun
        self._listing = listing
        self._directory = directory
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        connection = scope["state"]["connection"]
        piece, after = self._begun, self._after
        try:
            while after and not connection.broken:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                # Sending waits for the client only when it is slow.
                await trio.lowlevel.checkpoint()
                piece, after = self._listing.some(self._directory, after)
        except CafsError as error:
            log.error("PROPFIND: %s; the connection was cut", error)
            connection.abort()
            return
        if not connection.broken:
            await send({"type": "http.response.body", "body": multistatus.TAIL})


class _Listing:
    """Renders one request's responses."""

    def __init__(self, site: Site, request: Request, path: TreePath, wanted: Wanted) -> None:
        self._site = site
        self._path = path
        self._wanted = wanted
        sent: bytes = request.scope["raw_path"]
        self._href = multistatus.escape_text(sent)
        self._base = self._href if sent.endswith(b"/") else self._href + b"/"
        self._name = path.names[-1] if path.names else request.scope["location"].encode()

    def own(self, attr: Attr) -> bytes:
        """The response for what was asked about."""
        is_directory = stat.S_ISDIR(attr.mode)
        resource = Resource(self._href, self._name, is_directory, attr.size, attr.mtime_ns)
        return self._response(resource)

    def some(self, directory: Ino, after: int) -> tuple[bytes, int]:
        """The responses for some entries behind a cookie, and the cookie of the last one;
        nothing and 0 when there are none.
        """
        entries = list(islice(self._site.tree.listing(directory, after), AT_ONCE))
        if not entries:
            return b"", 0
        return b"".join(self._each(entries)), entries[-1].cookie

    def _each(self, entries: list[DirEntry]) -> Iterator[bytes]:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            resource = self._resource(entry)
            if resource is not None:
                yield self._response(resource)

    def _resource(self, entry: DirEntry) -> Resource | None:
        href = self._base + multistatus.escape_uri(entry.name)
        try:
            attr = self._site.attr(entry.ino)
            if stat.S_ISLNK(attr.mode):
                path = TreePath((*self._path.names, entry.name), False)
                attr = self._site.attr(self._site.find(path))
        except FsError:
            # A link that leads nowhere.
            return None
        except DamagedError:
            # Its record cannot be read: what its name says is listed all the same.
            attr = None
        mode = attr.mode if attr is not None else entry.type << 12
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            return None
        is_directory = stat.S_ISDIR(mode)
        if is_directory:
            href += b"/"
        size, mtime = (attr.size, attr.mtime_ns) if attr is not None else (0, 0)
        return Resource(href, entry.name, is_directory, size, mtime)

    def _response(self, resource: Resource) -> bytes:
        return multistatus.response(resource, self._wanted)
