"""Add the routes to a web application: by entry point, by one line, or as a router."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.websockets import WebSocket

from semantik_realtime.config import Settings
from semantik_realtime.errors import ConfigError
from semantik_realtime.hookspecs import (
    Authenticated,
    Backend,
    Credentials,
    NoOpinion,
    Top,
    hookimpl,
)
from semantik_realtime.runtime import Runtime
from semantik_realtime.web.cors import answer_preflight, share
from semantik_realtime.web.endpoints import control, rest, sse
from semantik_realtime.web.endpoints.history import get_history
from semantik_realtime.web.endpoints.websocket import serve_compat, serve_native
from semantik_realtime.web.routing import add_public, add_socket, find_hiding
from semantik_realtime.web.state import WebState

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

Authenticate = Callable[[Credentials], Authenticated | Awaitable[Authenticated]]
Allowed = bool | NoOpinion | None
Authorize = Callable[[str, str, str | None], Allowed | Awaitable[Allowed]]

_STATIC_TYPES = {".js": "text/javascript", ".ts": "text/plain"}


class Realtime(Runtime):
    """A runtime with a web side::

        app = FastAPI()
        Realtime().install(app)

    Args and errors are those of `semantik_realtime.runtime.Runtime`.
    ``registry`` is added: the application's registry of prometheus-client, to
    which the metrics are added too.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        plugins: Iterable[object] = (),
        backend: Backend | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        super().__init__(settings, plugins=plugins, backend=backend)
        # Made by `web` at first use, never cleared.
        self._web: WebState | None = None
        self._registry = registry

    @property
    def web(self) -> WebState:
        """The state that the routes share, made at first use.

        Raises:
            ConfigError: the registry has such metrics already.
        """
        if self._web is None:
            self._web = WebState(self, self._registry)
        return self._web

    def router(
        self,
        *,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
    ) -> APIRouter:
        """Return a router with all routes.

        ``authenticate`` returns the user of a request's credentials, and None
        to refuse; ``authorize`` whether a user may watch a topic, and None to
        leave that to the owner rule. Each may be a coroutine function, and is a
        hook of `semantik_realtime.hookspecs.HostSpec`.
        Including the router adds its lifespan to the application's. In a
        mounted sub-application, whose lifespan never runs, it opens at the
        first request.

        What decides who may watch what is checked when the application starts,
        not here: a worker that imports the application has no such settings.

        Raises:
            ConfigError: as `web`, or a path has no parameter for the job.
        """
        if authenticate is not None or authorize is not None:
            if self._web is not None:
                raise ConfigError("give authenticate and authorize to the first router()")
            self.plugins.register(_host_rules(authenticate, authorize))
        web = self.web
        # A host may make its names of operations of the tags.
        router = APIRouter(lifespan=self._lifespan, tags=["realtime"])
        base = self.settings.path.rstrip("/")

        async def native(websocket: WebSocket) -> None:
            await serve_native(websocket, web)

        add_socket(router, f"{base}/ws", native, "realtime_ws")

        async def compat_feed(websocket: WebSocket) -> None:
            await serve_compat(websocket, web)

        for path in self.settings.compat_feed_path:
            add_socket(router, path, compat_feed, "realtime_compat_feed")
        for template in self.settings.compat_path:
            # An id may have slashes.
            path = re.sub(r"\{(\w+)\}$", r"{\1:path}", template)
            add_socket(
                router, path, _compat_route(web, _job_parameter(template)), "realtime_compat"
            )

        # An id may have slashes, so the routes with an end of their own come first.
        @router.get(f"{base}/jobs/{{job_id:path}}/history", name="realtime_history")
        async def history(request: Request, job_id: str) -> Response:
            """Return the retained events of a job, oldest first."""
            return share(web, request, await get_history(request, web, job_id))

        @router.get(f"{base}/jobs/{{job_id:path}}/events", name="realtime_job_events")
        async def job_events(request: Request, job_id: str) -> Response:
            """Stream the events of a job, as server-sent events."""
            return share(web, request, await sse.get_events(request, web, job_id))

        @router.post(f"{base}/jobs/{{job_id:path}}/cancel", name="realtime_cancel", status_code=202)
        async def cancel(request: Request, job_id: str) -> Response:
            """Cancel a job: 200 if it has ended by that, 202 if its task still runs."""
            return share(web, request, await control.cancel_job(request, web, job_id))

        @router.post(f"{base}/jobs/{{job_id:path}}/retry", name="realtime_retry", status_code=202)
        async def retry(request: Request, job_id: str) -> Response:
            """Start a job that has ended again; the answer names the job to watch."""
            return share(web, request, await control.retry_job(request, web, job_id))

        @router.get(f"{base}/jobs/{{job_id:path}}", name="realtime_job")
        async def job(request: Request, job_id: str) -> Response:
            """Return the present state of a job; the ETag is the cursor."""
            return share(web, request, await rest.get_job(request, web, job_id))

        @router.get(f"{base}/events", name="realtime_events")
        async def events(request: Request) -> Response:
            """Stream the events of each ``topic`` of the query, as server-sent events."""
            return share(web, request, await sse.get_events(request, web))

        @router.get(f"{base}/health", name="realtime_health")
        async def health(request: Request) -> Response:
            """Report whether the process lives and the backend answers."""
            return share(web, request, await rest.get_health(web))

        @router.get(f"{base}/metrics", name="realtime_metrics", include_in_schema=False)
        async def metrics(request: Request) -> Response:
            return await rest.get_metrics(request, web)

        async def static(request: Request) -> Response:
            return share(web, request, _static_file(request.path_params["name"]))

        add_public(router, f"{base}/static/{{name}}", static, "realtime_static")

        async def preflight(request: Request) -> Response:
            return answer_preflight(web, request)

        for path in ("jobs/{job_id:path}", "events", "health", "static/{name}"):
            add_public(router, f"{base}/{path}", preflight, "realtime_preflight", "OPTIONS")
        return router

    def install(self, app: FastAPI) -> Realtime:
        """Add the routes to ``app``, and itself as ``app.state.realtime``.

        They come after the routes that ``app`` has, but before one that would
        hide them, such as static files at ``/``.

        Raises:
            ConfigError: as `router`.
        """
        routes = app.router.routes
        first = len(routes)
        app.include_router(self.router())
        places = [routes.index(route) for route in _hiding(routes)]
        if (place := min(places, default=first)) < first:
            routes[:] = [*routes[:place], *routes[first:], *routes[place:first]]
        app.state.realtime = self
        return self

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for route in _hiding(app.routes):
            logger.error(
                "web: hidden by another route, which gets the requests: %r, add the routes of "
                "Realtime before it",
                route,
            )
        if getattr(app.router, "dependencies", None):
            logger.info(
                "web: the dependencies of the application are not called for WebSockets: "
                "authenticate and authorize decide there"
            )
        async with self.web.lifespan(app):
            yield

    async def _top(self, topic: str) -> Top | None:
        # The hub owns the reader, which lives on one loop. Another loop must not open it.
        if self._web is None:
            return await super()._top(topic)
        hub = self._web.hub
        if hub.loop in (None, asyncio.get_running_loop()):
            return await hub.top(topic)
        top = asyncio.run_coroutine_threadsafe(hub.top(topic), hub.loop)
        return await asyncio.wrap_future(top)


def setup(app: FastAPI) -> None:
    """Install a `Realtime` in ``app``: the entry point of the group ``semantik.webui``.

    The host's plugins are in ``app.state.realtime_plugins``.
    """
    Realtime(plugins=getattr(app.state, "realtime_plugins", ())).install(app)


def _hiding(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """Return the routes that hide those of the router."""
    page = find_hiding(routes, "http", "realtime_static", {"name": "realtime.js"})
    socket = find_hiding(routes, "websocket", "realtime_ws", {})
    return [route for route in (page, socket) if route is not None]


def _compat_route(web: WebState, parameter: str) -> Callable[[WebSocket], Awaitable[None]]:
    async def compat(websocket: WebSocket) -> None:
        await serve_compat(websocket, web, websocket.path_params[parameter])

    return compat


def _job_parameter(template: str) -> str:
    """Return the parameter of a path that is the job's id: ``job_id``, or else the only one."""
    names = re.findall(r"\{(\w+)\}", template)
    if "job_id" in names:
        return "job_id"
    if len(names) != 1:
        raise ConfigError("SEMANTIK_REALTIME_COMPAT_PATH needs {job_id}, or another parameter")
    return str(names[0])


def _host_rules(authenticate: Authenticate | None, authorize: Authorize | None) -> object:
    rules: dict[str, Any] = {}
    if authenticate is not None:
        find_user = authenticate

        def authenticate_hook(self: object, credentials: Credentials) -> Any:
            return find_user(credentials)

        rules["authenticate"] = hookimpl(authenticate_hook)
    if authorize is not None:
        is_allowed = authorize

        def authorize_hook(self: object, user: str, topic: str, owner: str | None) -> Any:
            return is_allowed(user, topic, owner)

        rules["authorize"] = hookimpl(authorize_hook)
    return type("HostRules", (), rules)()


def _static_file(name: str) -> Response:
    folder = files("semantik_realtime.web") / "static"
    suffix = name[name.rfind(".") :]
    # Only a plain name with a known suffix, because a path could lead out of the folder.
    if suffix in _STATIC_TYPES and name.replace(".", "").replace("-", "").isalnum():
        file = folder / name
        if file.is_file():
            return Response(
                file.read_bytes(),
                media_type=_STATIC_TYPES[suffix],
                headers={"Cache-Control": "no-cache"},
            )
    return Response(status_code=404)
