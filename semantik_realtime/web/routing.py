"""Routes that the host's dependencies do not reach, and their place among the host's routes.

A host may have dependencies for its whole application, ``FastAPI(dependencies=[…])``, or for the
routers that it includes. FastAPI calls them for WebSockets too, where most of them fail: they need
a `Request`, or a header that no browser sends with a WebSocket. Starlette's routes have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.datastructures import URLPath
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, NoMatchFound, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

Endpoint = Callable[..., Any]


def add_socket(router: APIRouter, path: str, endpoint: Endpoint, name: str) -> None:
    """Add a route for WebSockets, for which no dependency of the host is called."""
    _add(router, WebSocketRoute(path, endpoint, name=name))


def add_public(
    router: APIRouter, path: str, endpoint: Endpoint, name: str, method: str = "GET"
) -> None:
    """Add a route for HTTP, for which no dependency of the host is called."""
    _add(router, Route(path, endpoint, methods=[method], name=name, include_in_schema=False))


def find_hiding(
    routes: Sequence[BaseRoute], type: str, name: str, parameters: Mapping[str, str]
) -> BaseRoute | None:
    """Return the route that gets the requests for the route with ``name``; None: that one does.

    An application asks its routes in their order, and one for every path may come first.

    Args:
        routes: of the application.
        type: ``http`` or ``websocket``.
        name: of the route.
        parameters: of its path.
    """
    path = next(filter(None, (_path_of(route, name, parameters) for route in routes)), None)
    if path is None:
        return None
    for route in routes:
        scope: Scope = {
            "type": type,
            "method": "GET",
            "path": str(path),
            "root_path": "",
            "query_string": b"",
            "headers": [],
        }
        if route.matches(scope)[0] is Match.FULL:
            return None if _path_of(route, name, parameters) else route
    return None


def _path_of(route: BaseRoute, name: str, parameters: Mapping[str, str]) -> URLPath | None:
    try:
        return route.url_path_for(name, **parameters)
    except (NoMatchFound, NotImplementedError):
        # The second is what a route of the host's own class has by default.
        return None


def _add(router: APIRouter, plain: Route | WebSocketRoute) -> None:
    if _KEEPS_PREFIXES:
        router.routes.append(plain)
        return

    class Included(APIRoute):
        """The plain route as one of FastAPI's, which makes it anew with every prefix."""

        def __init__(self, path: str, endpoint: Endpoint, *, name: str, **_: object) -> None:
            # The other arguments are those of FastAPI's routes: the host's dependencies, tags …
            super().__init__(path, _no_parameters, name=name, include_in_schema=False)
            self.endpoint = endpoint
            self._route: BaseRoute
            if isinstance(plain, WebSocketRoute):
                self._route = WebSocketRoute(path, endpoint, name=name)
            else:
                self._route = Route(path, endpoint, methods=list(plain.methods or ()), name=name)

        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            return self._route.matches(scope)

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self._route.handle(scope, receive, send)

    router.routes.append(Included(plain.path, plain.endpoint, name=plain.name))


async def _no_parameters(_: Request) -> Response:
    """Stands for an endpoint whose parameters FastAPI must not read."""
    return Response()


def _keeps_prefixes() -> bool:
    """Return True if FastAPI puts every prefix before the path of a plain route.

    Older releases (0.136 is one) forget that of a router between this one and the application.
    """
    inner, outer = APIRouter(), APIRouter(prefix="/outer")
    inner.add_route("/inner", _no_parameters)
    outer.include_router(inner)
    return all(getattr(route, "path", "") != "/inner" for route in outer.routes)


_KEEPS_PREFIXES = _keeps_prefixes()
