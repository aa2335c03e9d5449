"""Handlers of HTTP requests on a real store, without a network: one call, one answer.

Owns what ASGI would pass in.  Invariant: what a test sees is what Application answers, every
gate and wrapper included.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import trio

from cafs.http.app import Application
from cafs.http.site import Site
from cafs.http_options import HttpOptions
from cafs.newstore import create
from cafs.store import Store, open_store
from tests.model.audit import audit
from tests.model.storethread import QUIET
from tests.unit.small_store import PARAMS


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


class Client:
    """Asks one application."""

    def __init__(self, store: Store, application: Application, site: Site) -> None:
        self.store = store
        self.site = site
        self.pieces = 0
        """Messages that the last answer's body came in."""
        self._application = application

    async def __call__(
        self, method: str, path: str, body: bytes = b"", /, **headers: str
    ) -> Answer:
        """Ask as nginx does over the trusted socket; header names with _ for -."""
        sent = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        sent.setdefault("host", "store:4443")
        sent.setdefault("x-forwarded-proto", "https")
        if body or method == "PUT":
            sent.setdefault("content-length", str(len(body)))
        raw, _, query = path.encode("latin-1").partition(b"?")
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": body, "more_body": False}
        ]
        answer: dict[str, Any] = {"body": bytearray()}
        self.pieces = 0

        async def receive() -> dict[str, Any]:
            await trio.lowlevel.checkpoint()
            if messages:
                return messages.pop(0)
            await trio.sleep_forever()
            raise AssertionError

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                answer["headers"] = {
                    name.decode(): value.decode() for name, value in message["headers"]
                }
            else:
                answer["body"] += message.get("body", b"")
                self.pieces += 1

        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": "",
            "raw_path": raw,
            "query_string": query,
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
            "client": ("", 0),
            "server": ("unix", None),
            "state": {
                "connection": SimpleNamespace(trusted=True, broken=False, abort=None),
                "line": f"{method} {path} HTTP/1.1".encode(),
            },
        }
        await self._application(scope, receive, send)
        return Answer(answer["status"], answer["headers"], bytes(answer["body"]))


@asynccontextmanager
async def client(path: Path, options: HttpOptions | None = None) -> AsyncIterator[Client]:
    """A client of the store at *path*, which is opened for it."""
    async with open_store(path, QUIET) as store:
        site = Site(store, options or HttpOptions())
        application = Application(site)
        try:
            yield Client(store, application, site)
        finally:
            application.close()


def ask(path: Path, work: Callable[[Client], Awaitable[None]], **options: object) -> None:
    """Let *work* ask the application of a new store at *path*, whose books must be right then."""

    async def main() -> None:
        async with client(path, HttpOptions(**options)) as asking:  # type: ignore[arg-type]
            await work(asking)

    create(path, PARAMS)
    trio.run(main)
    assert not audit(path)
