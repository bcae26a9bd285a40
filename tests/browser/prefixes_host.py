"""One application under every kind of path: a prefix, a mount, and a path that a proxy adds."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from semantik_realtime import Realtime

PAGE = """<!doctype html><link rel="icon" href="data:,"><output></output>
<script type="module">
  import { connect } from "REALTIME/static/realtime.js";
  connect({ storage: null }).watch("job:1", {
    onChange: (view) => (document.querySelector("output").value = view.topic),
  });
</script>"""


def page(base: str) -> Any:
    def get_page() -> HTMLResponse:
        return HTMLResponse(PAGE.replace("REALTIME", f"{base}/realtime"))

    return get_page


class Proxied:
    """Serves an application below ``/proxied``, as a proxy that removes the path does."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if path.startswith("/proxied/"):
            raw = scope["raw_path"].removeprefix(b"/proxied")
            scope = {**scope, "path": path.removeprefix("/proxied"), "raw_path": raw}
        await self._app(scope, receive, send)


mounted = FastAPI()
Realtime().install(mounted)

whole = FastAPI()
whole.include_router(Realtime().router(), prefix="/api/v1")
whole.mount("/mounted", mounted)
rt = Realtime().install(whole)
for base in ("", "/api/v1", "/mounted", "/proxied"):
    # Not below the base: the page's own path must make no difference.
    whole.get(f"/pages{base}/index.html")(page(base))


@whole.get("/publish/{type}")
async def publish(type: str) -> HTMLResponse:
    """Publish an event of job 1; return a page."""
    await rt.publish("job:1", type)
    return HTMLResponse('<!doctype html><link rel="icon" href="data:,">')


app = Proxied(whole)
