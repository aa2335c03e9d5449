"""``POST /resource_matches``: thousands of existence checks in one request.

A resource is known if there is a regular file at its partitioned path (``ab/cd/<sha1>`` below
the resource directory) with the size that was told, which is what a HEAD for each would find.
Invariant: the answer is of one moment: nothing changes between the first look and the last.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from cafs.errors import FsError
from cafs.http import answers
from cafs.http.body import read_body
from cafs.http.paths import TreePath
from cafs.http.resources import RefusedError, answer
from cafs.http.site import Site
from cafs.tree import walk
from cafs.tree.bulk import Names
from cafs.types import Ino

BODY_MAX: Final = 8 << 20
"""Bytes: 5,000 entries with paths of a kilobyte and a half."""

_NOWHERE: Final = Ino(0)
_DIGITS: Final = re.compile(rb"[0-9a-f]{4}")


async def handle(site: Site, request: Request, path: TreePath) -> Response:
    """Answer one request: 201 as Cloud Controller does, 200 in the older shape."""
    body = await read_body(request, BODY_MAX, site.options.client_timeout)
    if body is None:
        return answers.text(413, f"413: the body has more than {BODY_MAX} bytes")
    try:
        found = answer(body, Lookup(site))
    except RefusedError as error:
        return answers.text(422, f"422: {error}")
    status = 200 if found.startswith(b"[") else 201
    return Response(found, status, media_type="application/json")


class Lookup:
    """Looks resources up in one store's tree."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._names = Names(site.tree, site.store.overlay)

    def __call__(self, names: Sequence[bytes], told: Sequence[int]) -> list[bool]:
        """Whether there is a file for each SHA-1 and size.

        Raises FsError(EACCES) when the resource directory is closed to the caller; what lies in
        it is not asked again.
        """
        known = [False] * len(names)
        top = self._top()
        if top is None:
            return known
        pairs = [name[:4] for name in names]
        directories = self._directories(top, set(pairs))
        # Nothing is inode 0, so a name in it leads nowhere.
        parents = [directories.get(pair, _NOWHERE) for pair in pairs]
        files = self._names.files(parents, names)
        places = [place for place, ino in enumerate(files) if ino]
        found = [files[place] for place in places]
        sizes = self._names.sizes(found)
        contents = self._site.contents
        if contents.being_written:
            sizes = [
                contents.attr(ino).size if contents.has_draft(ino) else size
                for ino, size in zip(found, sizes, strict=True)
            ]
        for place, size in zip(places, sizes, strict=True):
            known[place] = size == told[place]
        return known

    def _top(self) -> Ino | None:
        site = self._site
        names = tuple(site.options.resource_directory.encode().split(b"/"))
        try:
            top = site.find(TreePath(names, True))
            site.require(top, walk.SEARCH)
        except FsError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        return top

    def _directories(self, top: Ino, pairs: set[bytes]) -> dict[bytes, Ino]:
        """The partition directories with these four digits that there are."""
        firsts = list({pair[:2] for pair in pairs})
        found = self._names.directories([top] * len(firsts), firsts)
        first = {name: ino for name, ino in zip(firsts, found, strict=True) if ino}
        remembered = {name: self._site.partitions.of(ino) for name, ino in first.items()}
        directories: dict[bytes, Ino] = {}
        wanted: list[bytes] = []
        for pair in pairs:
            known = remembered.get(pair[:2])
            if known is None:
                continue
            if pair in known:
                directories[pair] = known[pair]
            else:
                wanted.append(pair)
        parents = [first[pair[:2]] for pair in wanted]
        found = self._names.directories(parents, [pair[2:] for pair in wanted])
        for pair, ino in zip(wanted, found, strict=True):
            # That there is none is remembered as well: one that is made changes its parent.
            directories[pair] = ino
            if _DIGITS.fullmatch(pair):
                # Of others there are as many as clients make up.
                remembered[pair[:2]][pair] = ino
        return directories
