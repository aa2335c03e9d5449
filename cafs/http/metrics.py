"""GET /metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from cafs.http.paths import TreePath
from cafs.http.site import Site


async def handle(site: Site, _request: Request, _path: TreePath) -> Response:
    """GET /metrics."""
    content = generate_latest(site.requests.registry)
    return Response(content, 200, {"content-type": CONTENT_TYPE_LATEST})
