"""GET /sign and /sign_for_put: links, as blobstore_url_signer answers them.

The answer is the bare URL.  What is below ``/sign`` and neither of the two is 400, and a missing
argument is 502, because that is what its crashing handler looks like through nginx and what
clients are built for.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from cafs.http import answers, links
from cafs.http.paths import TreePath, escaped, normalized
from cafs.http.site import Site

_LOCATIONS = {b"/sign": b"/read", b"/sign_for_put": b"/write"}


async def handle(site: Site, request: Request, _path: TreePath) -> Response:
    """Sign a path for reading or writing until ``expires``."""
    location = _LOCATIONS.get(request.scope["normalized"])
    if location is None:
        return answers.text(400, "400: /sign and /sign_for_put are all that is signed here")
    query = request.scope["query_string"].decode("latin-1")
    pairs = dict(reversed(parse_qsl(query, keep_blank_values=True, encoding="latin-1")))
    path, expires = pairs.get("path"), pairs.get("expires")
    if not path or not expires:
        return answers.text(502, "502: path and expires are needed")
    if not site.secret:
        return answers.text(502, "502: there is no secret to sign with (http.secret_file)")
    raw = path.encode("latin-1")
    decoded = raw if raw.startswith(b"/") else b"/" + raw
    # What the link's check will see: the path as a server normalizes it.
    signed = normalized(location + escaped(decoded).encode())
    if not signed.startswith(location + b"/"):
        # A link for reading /../write/x would be one for writing x.
        return answers.text(400, "400: the path leads above the root")
    signature = links.md5_signature(site.secret, signed, expires.encode("latin-1"))
    url = (
        f"http://{site.options.link_host}{location.decode()}{escaped(decoded)}"
        f"?md5={signature.decode()}&expires={expires}"
    )
    return Response(url, 200, media_type="text/plain")
