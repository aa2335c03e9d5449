"""PROPFIND's two documents: what a client asks, and the multistatus that answers it (RFC 4918).

Pure functions over bytes.  Invariants: a document type is refused before anything in it is
looked at, so there are no entities to expand; what is rendered is well-formed whatever bytes a
name has, with the prefix ``D`` bound on the root element, exactly one ``D:prop`` in each
response, and nothing at all inside a file's ``D:resourcetype``: two clients parse it with less
than an XML namespace in mind.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes
from xml.parsers import expat

from cafs.http import httpdate

DAV: Final = "DAV:"
PROPERTIES: Final = (
    "displayname",
    "getcontentlength",
    "getlastmodified",
    "resourcetype",
    "lockdiscovery",
    "supportedlock",
)
"""All that there are, in the order in which they are rendered."""
BODY_MAX: Final = 64 << 10
"""Bytes of a request's body."""
DEPTH_MAX: Final = 100

HEAD: Final = b'<?xml version="1.0" encoding="utf-8" ?>\n<D:multistatus xmlns:D="DAV:">\n'
TAIL: Final = b"</D:multistatus>\n"

# What all keys of Cloud Foundry look like: nothing in it has to be escaped anywhere.
_PLAIN = re.compile(rb"[A-Za-z0-9/._-]*")
_URI_SAFE: Final = "/-._~!$'()*+,;=:@"
_TEXT = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
# XML 1.0 has no way to write these, escaped or not.
_TEXT |= {code: "\ufffd" for code in range(0x20) if code not in (0x09, 0x0A)}
_TEXT |= {code: "\ufffd" for code in (0xFFFE, 0xFFFF)}


class MalformedError(ValueError):
    """A request's body is not what PROPFIND takes."""


class Wanted(NamedTuple):
    """What a client asks of each resource."""

    properties: frozenset[str] = frozenset(PROPERTIES)
    names_only: bool = False


class Resource(NamedTuple):
    """One file or directory as a response shows it."""

    href: bytes
    """Escaped already."""
    name: bytes
    is_directory: bool
    size: int
    mtime_ns: int


def parse(body: bytes) -> Wanted:
    """What a request's body asks; all properties when there is none.  Raises MalformedError."""
    if not body.strip():
        return Wanted()
    reader = _Reader()
    try:
        return reader.read(body)
    except MalformedError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:
        # The latter two: an encoding that is none, or one that expat cannot be taught.
        raise MalformedError(f"the body is not XML: {error}") from None


class _Reader:
    """Follows the elements of one document."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._named: set[str] = set()
        self._kinds: set[str] = set()

    def read(self, body: bytes) -> Wanted:
        parser = expat.ParserCreate(namespace_separator="\n")
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.Parse(body, True)
        if len(self._kinds) != 1:
            raise MalformedError("propfind must have one of prop, allprop and propname in it")
        kind = self._kinds.pop()
        if kind == "prop":
            return Wanted(frozenset(self._named))
        return Wanted(names_only=kind == "propname")

    def _doctype(self, *_: object) -> None:
        raise MalformedError("the body has a document type, which is not accepted")

    def _start(self, tag: str, _attributes: object) -> None:
        space, _, name = tag.rpartition("\n")
        if not self._path and (space, name) != (DAV, "propfind"):
            raise MalformedError("the body is no propfind element of DAV:")
        if len(self._path) >= DEPTH_MAX:
            raise MalformedError("the body is nested too deep")
        if space == DAV and len(self._path) == 1 and name in ("prop", "allprop", "propname"):
            self._kinds.add(name)
        if space == DAV and len(self._path) == 2 and self._path[1] == "prop":
            self._named.add(name)
        self._path.append(name if space == DAV else "")

    def _end(self, _tag: str) -> None:
        self._path.pop()


def escape_uri(path: bytes) -> bytes:
    """A path of any bytes as it stands in an href."""
    return path if _PLAIN.fullmatch(path) else quote_from_bytes(path, _URI_SAFE).encode("ascii")


def escape_text(name: bytes) -> bytes:
    """A name of any bytes as it stands between tags; what XML cannot hold is replaced."""
    if _PLAIN.fullmatch(name):
        return name
    return name.decode("utf-8", "replace").translate(_TEXT).encode("utf-8")


@lru_cache(maxsize=1024)
def _date(seconds: int) -> bytes:
    return httpdate.render(seconds).encode("ascii")


_RESPONSE: Final = (
    b"<D:response>\n<D:href>%s</D:href>\n<D:propstat>\n<D:prop>\n%s</D:prop>\n"
    b"<D:status>HTTP/1.1 200 OK</D:status>\n</D:propstat>\n</D:response>\n"
)


def response(resource: Resource, wanted: Wanted) -> bytes:
    """The response element of one resource."""
    if wanted.names_only:
        inner = b"".join(b"<D:%s/>\n" % name.encode() for name in PROPERTIES)
    elif wanted == _EVERYTHING and not resource.is_directory:
        # What nearly all of a long listing is: at once, in half of the time.
        date = _date(resource.mtime_ns // 10**9)
        return _FILE % (resource.href, escape_text(resource.name), resource.size, date)
    else:
        inner = _values(resource, wanted.properties)
    return _RESPONSE % (resource.href, inner)


def _values(resource: Resource, properties: Collection[str]) -> bytes:
    parts: list[bytes] = []
    if "displayname" in properties:
        parts.append(b"<D:displayname>%s</D:displayname>\n" % escape_text(resource.name))
    if "getcontentlength" in properties and not resource.is_directory:
        parts.append(b"<D:getcontentlength>%d</D:getcontentlength>\n" % resource.size)
    if "getlastmodified" in properties:
        date = _date(resource.mtime_ns // 10**9)
        parts.append(b"<D:getlastmodified>%s</D:getlastmodified>\n" % date)
    if "resourcetype" in properties:
        inside = b"<D:collection/>" if resource.is_directory else b""
        parts.append(b"<D:resourcetype>%s</D:resourcetype>\n" % inside)
    if "lockdiscovery" in properties:
        parts.append(b"<D:lockdiscovery/>\n")
    if "supportedlock" in properties:
        parts.append(b"<D:supportedlock/>\n")
    return b"".join(parts)


_EVERYTHING: Final = Wanted()
_FILE: Final = _RESPONSE % (
    b"%s",
    b"<D:displayname>%s</D:displayname>\n"
    b"<D:getcontentlength>%d</D:getcontentlength>\n"
    b"<D:getlastmodified>%s</D:getlastmodified>\n"
    b"<D:resourcetype></D:resourcetype>\n"
    b"<D:lockdiscovery/>\n<D:supportedlock/>\n",
)
"""As _values() renders it, all properties together."""
