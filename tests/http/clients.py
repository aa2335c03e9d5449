"""The two clients of the blobstore, as black boxes: what they send, and what they make of answers.

Written from what the contract says of Cloud Controller's DavClient and of storage-cli, its
successor; nothing here knows cafs.  Invariant: a client does no more and no less than the real
one: its headers, its number of tries, its reading of a listing, its verdicts.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from tests.http.links import hmac_link
from tests.http.wire import Connection, Endpoint, Reply, basic, http_date

T = TypeVar("T")
TRIES: Final = 3
WALK_BODY: Final = (
    b'<?xml version="1.0" encoding="utf-8"?>'
    b'<D:propfind xmlns:D="DAV:"><D:prop><D:resourcetype/></D:prop></D:propfind>'
)


class BlobstoreError(Exception):
    """Anything that the client does not take for success."""


class FileNotFound(BlobstoreError):
    """404 where the client tells it apart."""


class ConflictError(BlobstoreError):
    """409 where the client tells it apart."""


def partitioned(key: str) -> str:
    """Where Cloud Controller puts a key: in lower case, below its first two pairs of letters."""
    key = key.lower()
    return f"{key[0:2]}/{key[2:4]}/{key}"


@dataclass(frozen=True)
class Attributes:
    """What Cloud Controller keeps of a HEAD, as strings."""

    etag: str
    last_modified: str
    content_length: str


class DavClient:
    """Cloud Controller's own WebDAV client: keep-alive, and three tries on any exception."""

    def __init__(
        self,
        endpoint: Endpoint,
        directory_key: str,
        user: str,
        password: str,
        root_dir: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._base = f"/admin/{directory_key}"
        self._directory_key = directory_key
        self._root_dir = root_dir
        self._endpoint = endpoint
        self._http = Connection(
            endpoint,
            {
                "Authorization": basic(user, password),
                "User-Agent": "HTTPClient/1.0 (2.9.0, ruby 3.2.9)",
                "Accept": "*/*",
            },
            timeout=120,
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def exists(self, key: str) -> bool:
        """Whether the blob is there."""

        def ask() -> bool:
            status = self._send("HEAD", self._url(key)).status
            if status not in (200, 404):
                raise BlobstoreError(f"Could not get object existence, {status}")
            return status == 200

        return _tries(ask)

    def blob(self, key: str) -> Attributes | None:
        """The attributes that are kept to see whether the blob is still the same."""

        def ask() -> Attributes | None:
            reply = self._send("HEAD", self._url(key))
            if reply.status == 404:
                return None
            if reply.status != 200:
                raise BlobstoreError(f"Could not get object, {reply.status}")
            return Attributes(reply["ETag"], reply["Last-Modified"], reply["Content-Length"])

        return _tries(ask)

    def download(self, key: str) -> bytes:
        """The whole blob.  Raises BlobstoreError for anything but 200."""

        def ask() -> bytes:
            # An empty query is what the library makes of no parameters.
            reply = self._send("GET", f"{self._url(key)}?")
            if reply.status != 200:
                raise BlobstoreError(f"Could not fetch object, {reply.status}")
            return reply.body

        return _tries(ask)

    def upload(self, key: str, data: bytes) -> None:
        """Store a blob."""
        _tries(lambda: self._put(key, data))

    def _put(self, key: str, data: bytes) -> None:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status = self._send("PUT", self._url(key), data, **headers).status
        if status not in (201, 204):
            raise BlobstoreError(f"Could not create object, {status}")

    def copy(self, source: str, destination: str) -> None:
        """An empty PUT to make the directories, then a COPY; both again at each try."""

        def ask() -> None:
            self._put(destination, b"")
            url = self._endpoint.base + self._url(destination)
            status = self._send("COPY", self._url(source), Destination=url).status
            if status == 404:
                raise FileNotFound(f"Could not find object {source!r}, 404")
            if status not in (201, 204):
                raise BlobstoreError(f"Could not copy object, {status}")

        _tries(ask)

    def delete(self, key: str) -> None:
        """Remove a blob that must be there."""
        self._delete(self._url(key))

    def delete_blob(self, key: str) -> None:
        """Remove a blob if it is there."""
        with contextlib.suppress(FileNotFound):
            self._delete(self._url(key), missing_is_final=True)

    def delete_all(self) -> None:
        """Remove everything below the root directory."""
        self._delete(f"{self._base}/{self._root_dir}/")

    def delete_all_in_path(self, path: str) -> None:
        """Remove a directory of the root directory, if it is there."""
        with contextlib.suppress(FileNotFound):
            self._delete(f"{self._url(path)}/", missing_is_final=True)

    def _delete(self, url: str, *, missing_is_final: bool = False) -> None:
        def ask() -> int:
            status = self._send("DELETE", url).status
            if status == 404 and not missing_is_final:
                raise FileNotFound(f"Could not find object {url!r}, 404")
            if status == 409:
                raise ConflictError(f"Conflict deleting object {url!r}, 409")
            if status not in (204, 404):
                raise BlobstoreError(f"Could not delete object, {status}")
            return status

        if _tries(ask) == 404:
            raise FileNotFound(url)

    def files_for(self) -> Iterator[str]:
        """Walk everything, as the nightly search for orphans does; not tried again."""
        yield from self._walk(f"{self._base}/", "")

    def _walk(self, url: str, below: str) -> Iterator[str]:
        text = self._send("PROPFIND", url).body.decode()
        for name, is_directory in _prefixed_props(text)[1:]:
            path = f"{below}{name}"
            if is_directory:
                yield from self._walk(f"{self._base}/{path}", f"{path}/")
            else:
                yield path

    def sign(self, key: str, lifetime_s: int = 3600) -> str:
        """Path and query of a link to the blob; the client puts its own endpoint in front."""

        def ask() -> str:
            path = urllib.parse.quote(self._url(key).removeprefix("/admin"), safe="")
            expires = int(self._now()) + lifetime_s
            with Connection(self._endpoint, self._http.headers, timeout=60) as own:
                reply = own.request("GET", f"/sign?expires={expires}&path={path}")
            if reply.status != 200:
                raise BlobstoreError(f"Could not get a signed url, {reply.status}")
            parts = urllib.parse.urlsplit(reply.body.decode())
            return f"{parts.path}?{parts.query}"

        return _tries(ask)

    def _url(self, key: str) -> str:
        root = f"{self._root_dir}/" if self._root_dir else ""
        return f"{self._base}/{root}{partitioned(key)}"

    def _send(self, method: str, url: str, body: bytes | None = None, **headers: str) -> Reply:
        return self._http.request(method, url, body, {"Date": http_date(self._now()), **headers})


def _tries(ask: Callable[[], T]) -> T:
    for _ in range(TRIES - 1):
        with contextlib.suppress(Exception):
            return ask()
    return ask()


def _prefixed_props(text: str) -> list[tuple[str, bool]]:
    """Names and kinds, found as ``//D:prop`` finds them: by prefix, whatever it is bound to.

    Raises BlobstoreError where the real client dies of an undefined prefix.
    """
    root = re.search(r"<(?:\w+:)?multistatus\b[^>]*>", text)
    if root is None or 'xmlns:D="DAV:"' not in root.group():
        raise BlobstoreError("Undefined namespace prefix: //D:prop")
    found = []
    for prop in re.findall(r"<D:prop>(.*?)</D:prop>", text, re.S):
        name = re.search(r"<D:displayname>(.*?)</D:displayname>", prop, re.S)
        kind = re.search(r"<D:resourcetype>(.+?)</D:resourcetype>", prop, re.S)
        decoded = "" if name is None else (ElementTree.fromstring(f"<a>{name[1]}</a>").text or "")
        found.append((decoded, kind is not None))
    return found


@dataclass(frozen=True)
class Outcome:
    """How a process of storage-cli ended."""

    code: int
    output: str = ""
    data: bytes = b""


class StorageCli:
    """storage-cli: a process, so a TLS connection, per operation; three tries on any non-2xx."""

    def __init__(
        self, endpoint: Endpoint, directory_key: str, user: str, password: str, secret: str = ""
    ) -> None:
        self._endpoint = endpoint
        self._directory_key = directory_key
        self._base = f"/admin/{directory_key}"
        self._secret = secret
        self._headers = {
            "Authorization": basic(user, password),
            "User-Agent": "Go-http-client/1.1",
            "Connection": "close",
            "Accept-Encoding": "gzip",
        }
        self.connections = 0
        """How many were made; tests compare it with what the contract says."""

    def exists(self, blob: str) -> Outcome:
        """Exit code 0 if it is there, 3 if not."""
        status = self._send("HEAD", self._url(blob)).status
        return Outcome({200: 0, 404: 3}.get(status, 1))

    def properties(self, blob: str) -> Outcome:
        """Prints ETag, date and length as JSON; an empty object for what is absent."""
        reply = self._send("HEAD", self._url(blob))
        if reply.status == 404:
            return Outcome(0, "{}")
        if reply.status != 200:
            return Outcome(1)
        printed = {
            "etag": reply["ETag"].strip('"'),
            "last_modified": parsedate_to_datetime(reply["Last-Modified"]).isoformat(),
            "content_length": int(reply["Content-Length"]),
        }
        return Outcome(0, json.dumps(printed))

    def get(self, blob: str) -> Outcome:
        """The whole blob."""
        reply = self._send("GET", self._url(blob))
        return Outcome(0, data=reply.body) if reply.status == 200 else Outcome(1)

    def put(self, data: bytes, blob: str) -> Outcome:
        """Store a blob."""
        return _done(self._send("PUT", self._url(blob), data), 200, 201, 204)

    def copy(self, source: str, destination: str) -> Outcome:
        """An empty PUT, then a COPY that may overwrite."""
        made = _done(self._send("PUT", self._url(destination), b""), 200, 201, 204)
        if made.code:
            return made
        headers = {
            "Destination": self._endpoint.base + self._url(destination),
            "Overwrite": "T",
        }
        return _done(self._send("COPY", self._url(source), None, headers), 201, 204)

    def delete(self, blob: str) -> Outcome:
        """Remove a blob, if it is there."""
        reply = self._send("DELETE", self._url(blob))
        return Outcome(0 if 200 <= reply.status < 300 or reply.status == 404 else 1)

    def list(self, prefix: str = "") -> Outcome:
        """Prints the blobs that begin with *prefix*, walking from its deepest directory."""
        try:
            found = sorted(self._walk(prefix, prefix.rpartition("/")[0]))
        except BlobstoreError:
            return Outcome(1)
        return Outcome(0, "".join(f"{blob}\n" for blob in found))

    def delete_recursive(self, prefix: str) -> Outcome:
        """List, then delete one by one; the directories stay."""
        listed = self.list(prefix)
        for blob in listed.output.splitlines():
            if deleted := self.delete(blob).code:
                return Outcome(deleted)
        return Outcome(listed.code)

    def sign(self, blob: str, verb: str, lifetime_s: int, now: float) -> Outcome:
        """Prints a link that it makes without asking the server."""
        path = f"{self._directory_key}/{blob}"
        link = hmac_link(self._secret, verb, path, int(now), lifetime_s)
        return Outcome(0, self._endpoint.base + link)

    def _walk(self, prefix: str, directory: str) -> Iterator[str]:
        asked = f"{self._base}/{directory}/" if directory else f"{self._base}/"
        headers = {"Depth": "1", "Content-Type": "application/xml"}
        reply = self._send("PROPFIND", _quoted(asked), WALK_BODY, headers)
        if reply.status == 404:
            return
        if reply.status not in (200, 207):
            raise BlobstoreError(f"PROPFIND {directory}: {reply.status}")
        for href, is_collection in _local_names(reply.body):
            path = urllib.parse.unquote(urllib.parse.urlsplit(href).path)
            if path.rstrip("/") == asked.rstrip("/"):
                continue
            if not path.startswith(f"{self._base}/"):
                raise BlobstoreError(f"href {href} is not below {self._base}")
            blob = path.removeprefix(f"{self._base}/")
            if is_collection:
                # Pruned: no further than where the prefix could still be met.
                if f"{blob.rstrip('/')}/".startswith(prefix) or prefix.startswith(blob):
                    yield from self._walk(prefix, blob.rstrip("/"))
            elif blob.startswith(prefix):
                yield blob

    def _url(self, blob: str) -> str:
        return _quoted(f"{self._base}/{blob}")

    def _send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        for tried in range(1, TRIES + 1):
            self.connections += 1
            try:
                with Connection(self._endpoint, self._headers, timeout=600) as own:
                    reply = own.request(method, url, body, headers)
            except OSError:
                if tried == TRIES:
                    raise
                continue
            if 200 <= reply.status < 300 or tried == TRIES:
                return reply
        raise AssertionError("unreachable")


def _done(reply: Reply, *good: int) -> Outcome:
    return Outcome(0 if reply.status in good else 1)


def _quoted(path: str) -> str:
    return urllib.parse.quote(path)


def _local_names(body: bytes) -> Iterator[tuple[str, bool]]:
    """Hrefs and whether each is a collection, by local names alone, as Go's decoder finds them."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise BlobstoreError(str(error)) from error
    for response in root.iter():
        if _local(response) != "response":
            continue
        href = next((each.text or "" for each in response if _local(each) == "href"), "")
        yield href, any(_local(each) == "collection" for each in response.iter())


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
