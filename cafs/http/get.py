"""HEAD and GET of a file, header for header as nginx answers them.

Invariant: a body that was begun either ends with all its bytes, each verified, or the connection
is cut; what a client takes for whole is whole.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cafs.errors import CafsError, DamagedError
from cafs.http import answers, conditional, httpdate, mime, ranges
from cafs.http.conditional import Outcome
from cafs.http.paths import TreePath, escaped
from cafs.http.ranges import ByteRange
from cafs.http.site import Site, describe, origin
from cafs.log import RateLimit
from cafs.tree import walk
from cafs.types import Ino

log = logging.getLogger(__name__)

PIECE = 512 << 10
"""Bytes that are read at once; a piece is read while the one before is sent."""

_limit = RateLimit(burst=20)


async def handle(site: Site, request: Request, path: TreePath) -> Response:
    """Answer a HEAD or GET."""
    ino = site.find(path)
    attr = site.attr(ino)
    if stat.S_ISDIR(attr.mode):
        return _directory(request, path)
    if path.slash or not stat.S_ISREG(attr.mode):
        return answers.text(404, "404: there is no such file")
    site.require(ino, walk.READ)
    size, mtime_s = attr.size, attr.mtime_ns // 10**9
    etag = conditional.etag_of(mtime_s, size)
    kind = mime.content_type(path.names[-1])
    headers = {"last-modified": httpdate.render(mtime_s), "etag": etag}
    asked = request.headers
    outcome = conditional.evaluate(asked, etag, mtime_s)
    if outcome is Outcome.NOT_MODIFIED:
        return answers.empty(304, headers)
    if outcome is Outcome.FAILED:
        return answers.text(412, "412: the file is not the one that was meant")
    wanted = asked.get("range")
    parts = None
    if wanted is not None and conditional.range_applies(asked.get("if-range"), etag, mtime_s):
        parts = ranges.parse(wanted, size)
    if parts is None:
        headers |= {"content-type": kind, "content-length": str(size), "accept-ranges": "bytes"}
        body = FileBody(site, ino, [ByteRange(0, size)], 200, headers)
    elif not parts:
        unsatisfied = {"content-range": f"bytes */{size}"}
        return answers.text(416, f"416: the file has {size} bytes", unsatisfied)
    elif len(parts) == 1:
        headers |= {
            "content-type": kind,
            "content-length": str(parts[0].end - parts[0].start),
            "content-range": ranges.content_range(parts[0], size),
        }
        body = FileBody(site, ino, parts, 206, headers)
    else:
        several = ranges.multipart(parts, size, kind)
        headers |= {
            "content-type": f"multipart/byteranges; boundary={several.boundary}",
            "content-length": str(several.length),
        }
        body = FileBody(site, ino, parts, 206, headers, several.heads, several.tail)
    if request.method == "GET":
        await body.begin()
    return body


def _directory(request: Request, path: TreePath) -> Response:
    if path.slash:
        return answers.text(403, "403: directories are not listed here")
    query = request.scope["query_string"].decode("latin-1")
    location = f"{origin(request)}{escaped(request.scope['normalized'])}/"
    if query:
        location += f"?{query}"
    return answers.text(301, f"301: a directory: {location}", {"location": location})


class FileBody(Response):
    """An answer with ranges of a file as its body."""

    def __init__(
        self,
        site: Site,
        ino: Ino,
        parts: Sequence[ByteRange],
        status: int,
        headers: dict[str, str],
        heads: Sequence[bytes] = (),
        tail: bytes = b"",
    ) -> None:
        """*heads* come before each part, *tail* after the last one."""
        self.status_code = status
        self.background = None
        self.raw_headers = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
        ]
        self._site = site
        self._ino = ino
        self._parts = parts
        self._heads = heads or (b"",) * len(parts)
        self._tail = tail
        self._first = b""

    async def begin(self) -> None:
        """Read the first piece while an error can still be told.  Raises ChunkDamagedError ..."""
        start, end = self._parts[0]
        contents = self._site.contents
        self._site.store.accesses.note_beside([self._ino])
        contents.opened(self._ino, writable=False)
        try:
            self._first = await self._read(start, min(end, start + PIECE))
        except DamagedError as error:
            self._site.found_damage(self._ino, error)
            raise
        finally:
            contents.closed(self._ino, writable=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body"})
        elif len(self._parts) == 1 and self._parts[0].end - self._parts[0].start <= PIECE:
            await send(start)
            await send({"type": "http.response.body", "body": self._first})
        else:
            # Somebody may remove or replace the file meanwhile: it stays until we are through.
            # There was no checkpoint since the first piece was read.
            self._site.contents.opened(self._ino, writable=False)
            try:
                await send(start)
                await self._send_pieces(scope, send)
            finally:
                self._site.contents.closed(self._ino, writable=False)

    async def _send_pieces(self, scope: Scope, send: Send) -> None:
        connection = scope["state"]["connection"]
        try:
            async with trio.open_nursery() as nursery:
                sender, receiver = trio.open_memory_channel[bytes](0)
                nursery.start_soon(self._produce, sender)
                async with receiver:
                    async for piece in receiver:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                        if connection.broken:
                            nursery.cancel_scope.cancel()
            if not connection.broken:
                await send({"type": "http.response.body"})
        except* CafsError as group:
            connection.abort()
            self._cut_off(scope, group.exceptions[0])

    def _cut_off(self, scope: Scope, error: BaseException) -> None:
        if isinstance(error, DamagedError):
            self._site.found_damage(self._ino, error)
        text = f"{describe(Request(scope))}: {error}; the connection was cut"
        _limit.log(log, logging.ERROR, "damage", text, inode=self._ino)

    async def _produce(self, sender: trio.MemorySendChannel[bytes]) -> None:
        async with sender, aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                await sender.send(piece)

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        for head, (start, end) in zip(self._heads, self._parts, strict=True):
            if head:
                yield head
            while start < end:
                stop = min(end, start + PIECE)
                piece = self._first or await self._read(start, stop)
                self._first = b""
                yield piece
                start = stop
        if self._tail:
            yield self._tail

    async def _read(self, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        piece = await self._site.contents.read(self._ino, start, end)
        if len(piece) != end - start:
            raise CafsError("the file became shorter while it was sent")
        return piece
