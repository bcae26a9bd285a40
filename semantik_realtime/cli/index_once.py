"""``semantik-realtime demo --once``: index a folder through the web server, as a browser would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from semantik_realtime.cli.installation import USER, Installation, open_local
from semantik_realtime.cli.program import DemoFailed
from semantik_realtime.cli.terminal import plain, visible
from semantik_realtime.cli.watch import end_text, job_progress, show_update, websocket_url
from semantik_realtime.client import Update, watch
from semantik_realtime.core.lifecycle import has_ended
from semantik_realtime.urls import mask_text, mask_urls

CHECK_SECONDS = 0.5
REQUEST_SECONDS = 30


async def index_once(
    console: Console, error_console: Console, installation: Installation, folder: str
) -> int:
    """Log in, start a job over all documents, and show its progress; return the exit code.

    Raises:
        DemoFailed: A program of the installation has ended, or a request failed.
    """
    address = installation.address
    session = await _call(address, "/api/login", username=USER, password=installation.password)
    token: str = session["token"]
    started_at = time.monotonic()
    job = await _call(address, "/api/jobs", token, all=True)
    updates = watch(websocket_url(address), job["topic"], token=token)
    with job_progress(console) as progress:
        bar = progress.add_task(visible(f"indexing {folder}"), total=None, link="")
        watching = asyncio.create_task(_show_until_end(updates, progress, bar, job["id"]))
        while not (await asyncio.wait((watching,), timeout=CHECK_SECONDS))[0]:
            try:
                installation.check()
            except DemoFailed:
                watching.cancel()
                await asyncio.wait((watching,))
                raise
        state = watching.result() or {"status": "deleted"}
    seconds = time.monotonic() - started_at
    if state["status"] != "completed":
        error_console.print(plain(f"the job {end_text(state)}", "red"))
        return 1
    fields = state.get("fields") or {}
    counts = (
        f"documents {fields.get('processed_files', 0)}   "
        f"failed {fields.get('failed_files', 0)}   "
        f"chunks {fields.get('chunks', 0)}   seconds {seconds:.1f}"
    )
    console.print(plain(counts))
    return 0


async def _show_until_end(
    updates: AsyncGenerator[Update], progress: Progress, bar: TaskID, job: str
) -> dict[str, Any] | None:
    """Return the job's last state, or None if the job was deleted."""
    async with aclosing(updates):
        async for update in updates:
            state = show_update(progress, bar, update, job)
            if state and has_ended(state):
                return state
    return None


async def _call(address: str, path: str, token: str | None = None, /, **body: Any) -> Any:
    return await asyncio.to_thread(_post, address + path, token, body)


def _post(url: str, token: str | None, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json", "X-Requested-With": "semantik-realtime"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with open_local(request, timeout=REQUEST_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            detail = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, TypeError, KeyError):
            detail = json.loads(detail)["detail"]
        raise DemoFailed(f"{mask_urls(url)}: {error.code} {detail}") from None
    except OSError as error:
        raise DemoFailed(f"{mask_urls(url)}: {mask_text(str(error))}") from None
