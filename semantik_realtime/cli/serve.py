"""``semantik-realtime serve``: a page with the tasks of a Celery application, for development."""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from typing import Any

import click
import uvicorn
from celery.app.utils import find_app
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from semantik_realtime.cli.discovery import ReceivedTasks
from semantik_realtime.cli.ports import HOST, listen, port_of
from semantik_realtime.cli.program import DemoFailed
from semantik_realtime.cli.terminal import visible
from semantik_realtime.config import load_settings
from semantik_realtime.urls import mask_text, mask_urls
from semantik_realtime.web.realtime import Realtime

PREFERRED_PORT = 8000
MAX_FRAME_BYTES = 65_536


def run_serve(name: str, port: int | None) -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    celery_app = load_app(name)
    tasks = ReceivedTasks(celery_app)
    app = make_app(celery_app.main or name, tasks)
    try:
        listening = listen(port, PREFERRED_PORT)
    except DemoFailed as failure:
        raise click.ClickException(str(failure)) from None
    settings = app.state.realtime.settings
    click.echo(f"http://localhost:{port_of(listening)}")
    click.echo(
        f"tasks of {visible(name)}, updates from {mask_text(settings.backend)} at "
        f"{mask_urls(settings.url) if settings.url else 'its default address'}"
    )
    tasks.start()
    config = uvicorn.Config(
        app, http="h11", ws_max_size=MAX_FRAME_BYTES, log_level="warning", lifespan="on"
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        tasks.stop()
    return 0


def load_app(name: str) -> Any:
    """Import a Celery application by its name, as ``celery -A`` does.

    Raises:
        ClickException: there is none.
    """
    # The command's own folder is first in the path, and the project is where it is called.
    sys.path.insert(0, os.getcwd())
    try:
        return find_app(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.ClickException(
            f"no Celery application {visible(name)}: {visible(error)}"
        ) from None


def make_app(title: str, tasks: ReceivedTasks) -> FastAPI:
    """Return the web application. Everyone who reaches it sees everything: this machine alone."""
    app = FastAPI(title="Tasks", openapi_url=None)
    # Another name for this machine could be a stranger's, whose page would then be of this origin.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", HOST])
    page = (files("semantik_realtime.cli") / "static" / "tasks.html").read_text()

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Cache-Control": "no-cache"})

    @app.get("/tasks")
    def newest() -> dict[str, Any]:
        return {"title": title, "tasks": tasks.newest(), "error": tasks.error}

    Realtime(load_settings(disable_auth=True, environment="development")).install(app)
    return app
