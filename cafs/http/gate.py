"""Who may come in: addresses, passwords and signed links, and which methods a location has.

Over the trusted socket nginx has looked at address and password already; links are checked all
the same.  Invariant: a gate answers before anything of the tree is looked at, so that what it
refuses says nothing about which blobs there are.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cafs.http import answers, auth, links
from cafs.http.links import Verdict
from cafs.http.site import Site, is_trusted

REALM = 'Basic realm="Blobstore"'

Gate = Callable[[Site, Request, Mapping[str, Any]], Awaitable[Response | None]]
"""Returns the refusal, or None: come in."""


async def by_password(site: Site, request: Request, methods: Mapping[str, Any]) -> Response | None:
    """For those who have an allowed address, and a password if there are users."""
    if not is_trusted(request):
        refusal = _by_address(site, request) or await _by_password(site, request)
        if refusal is not None:
            return refusal
    return _by_method(request, methods)


async def by_md5(site: Site, request: Request, methods: Mapping[str, Any]) -> Response | None:
    """For those who have a link with an MD5 signature; an expired one is 410."""
    refusal = _by_method(request, methods)
    if refusal is not None:
        return refusal
    scope = request.scope
    now_s = site.store.clock.now_ns() / 1e9
    verdict = links.check_md5(site.secret, scope["normalized"], scope["query_string"], now_s)
    if verdict is Verdict.EXPIRED:
        return answers.text(410, "410: this link has expired")
    return None if verdict is Verdict.GOOD else _no_link()


async def by_hmac(site: Site, request: Request, methods: Mapping[str, Any]) -> Response | None:
    """For those who have a link with an HMAC signature; an expired one is 403."""
    refusal = _by_method(request, methods)
    if refusal is not None:
        return refusal
    scope = request.scope
    path = scope["normalized"].removeprefix(b"/signed/")
    method = request.method.encode("latin-1")
    now_s = site.store.clock.now_ns() / 1e9
    verdict = links.check_hmac(site.secret, method, path, scope["query_string"], now_s)
    return None if verdict is Verdict.GOOD else _no_link()


async def to_all(site: Site, request: Request, methods: Mapping[str, Any]) -> Response | None:
    """For everybody."""
    return _by_method(request, methods)


def _by_method(request: Request, methods: Mapping[str, Any]) -> Response | None:
    if request.method in methods:
        return None
    allowed = ", ".join(methods)
    return answers.text(405, f"405: allowed here: {allowed}", {"allow": allowed})


def _no_link() -> Response:
    return answers.text(403, "403: this link is not signed, or for something else, or too old")


def _by_address(site: Site, request: Request) -> Response | None:
    client = request.scope["client"]
    address = ipaddress.ip_address(client[0].partition("%")[0]) if client else None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address is not None and any(address in network for network in site.networks):
        return None
    return answers.text(403, "403: not from this address (http.access says from which)")


async def _by_password(site: Site, request: Request) -> Response | None:
    credentials = auth.parse_header(request.headers.get("authorization"))
    if credentials is not None:
        known = await site.users.knows(credentials)
        if known:
            return None
        if known is None:
            return answers.text(403, "403: there are no users (http.users_file names them)")
    return answers.text(401, "401: user and password, please", {"www-authenticate": REALM})
