"""Whether the daemon lives, and whether it can serve and take blobs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from cafs.http import answers
from cafs.http.paths import TreePath
from cafs.http.site import Site


async def alive(_site: Site, _request: Request, _path: TreePath) -> Response:
    """GET /healthz: 200 as long as the event loop turns."""
    return answers.text(200, "ok")


async def ready(site: Site, _request: Request, _path: TreePath) -> Response:
    """GET /readyz: 200 when blobs can be had and stored; else the status and reason of a PUT."""
    store = site.store
    store.space.look()
    problem = store.space.problem or store.committer.error
    if problem is not None:
        return answers.failed(problem, "readiness", 503)
    return answers.text(200, "ready")
