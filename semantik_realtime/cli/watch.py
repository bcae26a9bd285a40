"""``semantik-realtime watch``: a job in the terminal."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from semantik_realtime.client import Update, watch
from semantik_realtime.core.lifecycle import END_STATUSES
from semantik_realtime.core.topic import job_topic

HISTORY = 20


def job_progress(console: Console) -> Progress:
    """A bar for a job."""
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


def show(progress: Progress, bar: Any, update: Update, job: str) -> dict[str, Any] | None:
    """Bring a bar up to date; returns the job's state."""
    state: dict[str, Any] | None = update.view.states.get(job)
    link = "" if update.connection == "live" else _link(update)
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
    """The exit code: 0 if the job completed."""
    topic = job if ":" in job else job_topic(job)
    try:
        return asyncio.run(_watch(topic, url, token, as_json=as_json))
    except KeyboardInterrupt:
        return 130


async def _watch(topic: str, url: str, token: str | None, *, as_json: bool) -> int:
    key = topic.partition(":")[2]
    console = Console()
    updates = watch(url, topic, token=token, history=HISTORY)
    progress = job_progress(console)
    bar = progress.add_task("waiting", total=None, link="")
    # Where events are read by a program, what is said beside them goes elsewhere.
    aside = Console(stderr=True) if as_json else progress.console
    since, reason = None, ""
    with nullcontext() if as_json else progress:
        async with aclosing(updates):
            async for update in updates:
                if update.connection != "reconnecting" and update.since != since:
                    since = update.since
                    said = f"{_link(update)}: showing the host's record" if since else "live again"
                    aside.print(said, highlight=False)
                if update.reason not in ("", reason):
                    aside.print(f"{_link(update)}: {update.reason}", highlight=False, markup=False)
                reason = update.reason
                for event in update.events:
                    if as_json:
                        print(json.dumps(event), flush=True)
                    else:
                        progress.console.print(_line(event), highlight=False)
                show(progress, bar, update, key)
                # Not by what is shown: that the job is over, and how, only the log can say.
                status = update.view.folded.get(key, {}).get("status")
                if status in END_STATUSES:
                    return 0 if status == "completed" else 1
    console.print("deleted")
    return 1


def _link(update: Update) -> str:
    """How the connection is, in a few words; times are UTC, as in the events."""
    if update.since is None:
        return update.connection
    return f"{update.connection} since {update.since[11:19]}"


def _line(event: dict[str, Any]) -> str:
    said = " ".join(f"{name}={value}" for name, value in (event.get("data") or {}).items())
    return f"{event['offset']:>5}  {event['time'][11:23]}  {event['type']}  {said}".replace(
        "[", r"\["
    )
