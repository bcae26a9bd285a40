"""``semantik-realtime watch``: show a job in the terminal."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, nullcontext
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from semantik_realtime.client import Update, watch
from semantik_realtime.core.lifecycle import has_ended
from semantik_realtime.core.topic import job_topic

HISTORY_EVENTS = 20


def job_progress(console: Console) -> Progress:
    """Create a progress bar for a job; its tasks have the field ``link``."""
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[link]}"),
        console=console,
        transient=False,
    )


def show_update(progress: Progress, bar: TaskID, update: Update, job: str) -> dict[str, Any] | None:
    """Show an update in the bar; return the job's state."""
    state: dict[str, Any] | None = update.view.states.get(job)
    link = "" if update.connection == "live" else _connection_text(update)
    if state is None:
        progress.update(bar, link=link)
        return None
    amount = state.get("progress") or {}
    progress.update(
        bar,
        description=state.get("message") or state.get("status", ""),
        completed=amount.get("current") or 0,
        total=amount.get("total"),
        link=link,
    )
    return state


def run_watch(job: str, url: str, token: str | None, *, as_json: bool) -> int:
    """Follow a job until it ends; return the exit code: 0 if it completed."""
    topic = job if ":" in job else job_topic(job)
    try:
        return asyncio.run(_watch(topic, url, token, as_json=as_json))
    except KeyboardInterrupt:
        return 130


async def _watch(topic: str, url: str, token: str | None, *, as_json: bool) -> int:
    key = topic.partition(":")[2]
    console = Console()
    updates = watch(url, topic, token=token, history=HISTORY_EVENTS)
    progress = job_progress(console)
    bar = progress.add_task("waiting", total=None, link="")
    # With --json a program reads stdout: only events may be printed there.
    notes = Console(stderr=True) if as_json else progress.console
    since, reason = None, ""
    with nullcontext() if as_json else progress:
        async with aclosing(updates):
            async for update in updates:
                if update.connection != "reconnecting" and update.since != since:
                    since = update.since
                    degraded = f"{_connection_text(update)}: showing the host's record"
                    notes.print(degraded if since else "live again", highlight=False)
                if update.reason not in ("", reason):
                    note = f"{_connection_text(update)}: {update.reason}"
                    notes.print(note, highlight=False, markup=False)
                reason = update.reason
                for event in update.events:
                    if as_json:
                        print(json.dumps(event), flush=True)
                    else:
                        progress.console.print(_event_line(event), highlight=False)
                show_update(progress, bar, update, key)
                # Not `states`: a provisional end may differ from the end in the log.
                state = update.view.folded.get(key, {})
                if has_ended(state):
                    return 0 if state["status"] == "completed" else 1
    console.print("deleted")
    return 1


def _connection_text(update: Update) -> str:
    """Return the state of the connection as a text; the time is UTC, as in the events."""
    if update.since is None:
        return update.connection
    return f"{update.connection} since {update.since[11:19]}"


def _event_line(event: dict[str, Any]) -> str:
    data = " ".join(f"{name}={value}" for name, value in (event.get("data") or {}).items())
    return escape(f"{event['offset']:>5}  {event['time'][11:23]}  {event['type']}  {data}")
