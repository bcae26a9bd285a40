"""Cross-origin requests for the routes of HTTP: allowed for the pages that may connect.

A page of another origin may read an answer only if its headers allow that, by the CORS protocol of
https://fetch.spec.whatwg.org/#http-cors-protocol. A host's own `CORSMiddleware` answers first.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from semantik_realtime.web.state import WebState

PREFLIGHT_SECONDS = 600
"""How long a browser may keep the answer to a preflight."""
_ORIGIN, _ASKED = "origin", "access-control-request-headers"


def share(web: WebState, request: Request, response: Response) -> Response:
    """Return ``response``, which pages of an allowed origin may now read, and others may not."""
    headers = response.headers
    # Also without an origin: a cache must not give the answer of one page to another.
    headers.add_vary_header("Origin")
    origin = request.headers.get(_ORIGIN)
    if origin is not None and web.access.allows_origin(request):
        if "*" in web.settings.allowed_origins:
            # Every page, so none with the user's cookies.
            headers["Access-Control-Allow-Origin"] = "*"
        else:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
        headers["Access-Control-Expose-Headers"] = "ETag"
    return response


def answer_preflight(web: WebState, request: Request) -> Response:
    """Return whether the page may send a request with headers of its own; 403: it may not."""
    response = share(web, request, Response(status_code=204))
    response.headers.add_vary_header("Access-Control-Request-Headers")
    if "Access-Control-Allow-Origin" not in response.headers:
        response.status_code = 403
        return response
    response.headers["Access-Control-Allow-Methods"] = "GET, POST"
    if asked := request.headers.get(_ASKED):
        response.headers["Access-Control-Allow-Headers"] = asked
    response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    return response
