"""The web application: its factory, its plugins, and the checks of every request."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from sqlalchemy import select
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import FileResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semantik_realtime.demo.faults import find_supervisor
from semantik_realtime.demo.faults import router as faults_router
from semantik_realtime.demo.hooks import RealtimeHooks
from semantik_realtime.demo.login import hash_password
from semantik_realtime.demo.private import make_private_folder
from semantik_realtime.demo.records import Sessions, User, open_records
from semantik_realtime.demo.routes import Host, router
from semantik_realtime.demo.settings import DemoSettings, NotConfigured
from semantik_realtime.demo.texts import encodable

logger = logging.getLogger(__name__)

PLUGIN_GROUP = "semantik.webui"
STATIC = Path(__file__).parent / "static"
MAX_JSON_BYTES = 1 << 20
MAX_REASONS = 5
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; object-src 'none';"
        " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


def create_app(settings: DemoSettings | None = None) -> FastAPI:
    """Build the application: ``uvicorn --factory semantik_realtime.demo.app:create_app``.

    Raises:
        NotConfigured: A setting is missing; the message names it.
    """
    settings = settings or DemoSettings()
    settings.require_secret()
    make_private_folder(settings.data_dir)
    settings.folder.mkdir(parents=True, exist_ok=True)
    sessions = open_records(settings.sqlalchemy_url)
    create_first_user(sessions, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        sessions.kw["bind"].dispose()

    app = FastAPI(title="Semantik demo", lifespan=lifespan)
    app.state.host = Host(settings, sessions)
    app.state.supervisor = find_supervisor()
    app.state.realtime_plugins = [RealtimeHooks(sessions)]
    if settings.plugins:
        load_plugins(app)
    app.include_router(router)
    app.include_router(faults_router)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_api_route("/", lambda: FileResponse(STATIC / "index.html"), include_in_schema=False)
    app.add_exception_handler(RequestValidationError, refuse_invalid)
    app.add_middleware(RequestGuard, max_upload_bytes=settings.max_upload_bytes)
    return app


def create_first_user(sessions: Sessions, settings: DemoSettings) -> None:
    """Create the user of the settings if the database has no user.

    Raises:
        NotConfigured: There is no user, and no password in the settings.
    """
    with sessions.begin() as session:
        if session.scalar(select(User).limit(1)) is not None:
            return
        password = settings.password.get_secret_value() if settings.password else ""
        if not password:
            raise NotConfigured(
                "Set DEMO_PASSWORD (and DEMO_USER, if not 'demo'): the first start creates a user."
            )
        session.add(User(name=settings.user, password=hash_password(password)))


async def refuse_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 with a sentence.

    The default answer repeats the value, and cannot do so with NaN or half of a surrogate pair.
    """
    assert isinstance(error, RequestValidationError)
    reasons = (
        f"{'.'.join(str(part) for part in reason['loc'][1:])}: {reason['msg']}"
        for reason in error.errors()
    )
    detail = "; ".join(islice(reasons, MAX_REASONS))
    return JSONResponse({"detail": encodable(detail)}, 422)


def load_plugins(app: FastAPI) -> None:
    """Set up every plugin of PLUGIN_GROUP; one that raises is logged and left out."""
    for plugin in sorted(entry_points(group=PLUGIN_GROUP), key=lambda plugin: plugin.name):
        try:
            plugin.load()(app)
        except Exception:
            logger.exception("demo: plugin failed name=%s value=%s", plugin.name, plugin.value)


class RequestGuard:
    """Middleware: refuses forged and oversized requests, and adds the security headers.

    It is plain ASGI: it reads no byte of a refused request, and does not
    buffer the event streams of a plugin.
    """

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        """Limit of an upload request; that of other requests is MAX_JSON_BYTES."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/"):
                    headers["cache-control"] = "no-store"
                else:
                    headers.setdefault("cache-control", "no-cache")
            await send(message)

        refusal = self._refuse(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        if scope["method"] in {"GET", "HEAD", "OPTIONS"} or not scope["path"].startswith("/api/"):
            return None
        headers = Headers(scope=scope)
        # A page of another site can neither set this header nor forge its origin.
        is_forged = "x-requested-with" not in headers and not _is_same_origin(headers)
        # Whatever else a browser was allowed: no other site breaks something here.
        if scope["path"].startswith("/api/faults") and "origin" in headers:
            is_forged = not _is_same_origin(headers)
        if is_forged:
            return JSONResponse({"detail": "cross-site request refused"}, 403)
        if "transfer-encoding" in headers:
            return JSONResponse({"detail": "content-length is required"}, 411)
        is_upload = scope["path"] == "/api/documents"
        limit = self._max_upload_bytes if is_upload else MAX_JSON_BYTES
        length = headers.get("content-length", "0")
        # Python refuses to convert thousands of digits.
        if not length.isdecimal() or len(length) > 20 or int(length) > limit:
            return JSONResponse({"detail": f"the request has more than {limit} bytes"}, 413)
        return None


def _is_same_origin(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc == headers.get("host")
