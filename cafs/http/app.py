"""The application: which location answers what, to whom, and with which methods.

The locations are those of the contract; anything else is 404, because no blob may be had without
a password or a link.  The order of refusals in a location is nginx's: address, password or
signature, method, and only then the tree.  Invariant: every request gets exactly one answer,
whatever its handler raises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from cafs.errors import CafsError, UsageError
from cafs.http import answers, copy, delete, get, health, matches, metrics, propfind, put, sign
from cafs.http.accesslog import AccessLog
from cafs.http.gate import Gate, by_hmac, by_md5, by_password, to_all
from cafs.http.measure import Measured
from cafs.http.paths import TreePath, below, normalized
from cafs.http.site import Site, describe
from cafs.http.unread import UnreadBody

Handler = Callable[[Site, Request, TreePath], Awaitable[Response]]


class _Rest(Convertor[str]):
    """What follows a location's prefix: any characters, a newline included."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


_NOWHERE: Final = {"path": "", "normalized": b"/", "location": "other"}
"""Where a request that is refused as a whole leads."""

register_url_convertor("rest", _Rest())


class Location:
    """One prefix of the URL space; an ASGI application."""

    def __init__(
        self, site: Site, prefix: str, gate: Gate, handlers: Mapping[str, Handler]
    ) -> None:
        self._site = site
        self._prefix = prefix.encode()
        self._gate = gate
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive, send)
        response = await self._answer(request)
        try:
            await response(scope, receive, send)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The client went away; there is nobody to tell.
            pass

    async def _answer(self, request: Request) -> Response:
        scope = request.scope
        scope["location"] = self._prefix.decode().strip("/")
        try:
            refusal = await self._gate(self._site, request, self._handlers)
            if refusal is not None:
                return refusal
            handler = self._handlers[request.method]
            path = below(scope["normalized"], self._prefix)
            return await handler(self._site, request, path)
        except CafsError as error:
            return answers.failed(error, describe(request))
        except Exception as error:
            return answers.defect(describe(request), error)


def locations(site: Site) -> list[Route]:
    """The URL space; the first that matches is taken."""
    read: dict[str, Handler] = {"GET": get.handle, "HEAD": get.handle}
    write: dict[str, Handler] = {"PUT": put.handle}
    tree: dict[str, Handler] = {
        **read,
        **write,
        "COPY": copy.handle,
        "DELETE": delete.handle,
        "PROPFIND": propfind.handle,
    }

    def route(path: str, prefix: str, gate: Gate, handlers: Mapping[str, Handler]) -> Route:
        return Route(path, Location(site, prefix, gate, handlers))

    return [
        route("/admin/{tail:rest}", "/admin/", by_password, tree),
        route("/read/{tail:rest}", "/read/", by_md5, read),
        route("/write/{tail:rest}", "/write/", by_md5, write),
        route("/signed/{tail:rest}", "/signed/", by_hmac, {**read, **write}),
        Route("/signed-internal/{tail:rest}", _NothingHere()),
        route("/sign{tail:rest}", "/sign", by_password, {"GET": sign.handle, "HEAD": sign.handle}),
        route("/resource_matches", "/resource_matches", by_password, {"POST": matches.handle}),
        route("/healthz", "/healthz", to_all, {"GET": health.alive, "HEAD": health.alive}),
        route("/readyz", "/readyz", to_all, {"GET": health.ready, "HEAD": health.ready}),
        route("/metrics", "/metrics", by_password, {"GET": metrics.handle}),
    ]


class Application:
    """The whole site; an ASGI application."""

    def __init__(self, site: Site) -> None:
        router = Router(locations(site), redirect_slashes=False, default=_NothingHere())
        log = AccessLog(site.options.access_log) if site.options.access_log is not None else None
        self._inner: ASGIApp = Measured(UnreadBody(router), site.requests, log)
        self._log = log

    def close(self) -> None:
        """Let go of the access log."""
        if self._log is not None:
            self._log.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a server has *refused* what is none (an error in its scope)."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1000})
            return
        if "refused" in scope:
            await self._inner({**scope, **_NOWHERE}, receive, send)
            return
        try:
            path = normalized(scope["raw_path"])
        except UsageError as error:
            await self._inner({**scope, **_NOWHERE, "refused": error}, receive, send)
            return
        scope["normalized"] = path
        # Starlette wants text; bytes that are not UTF-8 stay apart as lone surrogates.
        scope["path"] = path.decode("utf-8", "surrogateescape")
        await self._inner(scope, receive, send)


class _NothingHere:
    """What no location answers; an ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = scope.get("refused")
        if refused is not None:
            response = answers.failed(refused, "a request")
        else:
            response = answers.text(404, "404: there is no such location")
        await response(scope, receive, send)
