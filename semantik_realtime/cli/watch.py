"""``semantik-realtime watch``: show a job in the terminal."""

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
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from semantik_realtime.cli.signals import stopping_as_by_ctrl_c
from semantik_realtime.cli.terminal import make_console, plain, visible
from semantik_realtime.client import Update, watch
from semantik_realtime.core.fold import CONFLATED, Gap
from semantik_realtime.core.lifecycle import has_ended
from semantik_realtime.core.topic import name_topic, split_topic
from semantik_realtime.errors import TopicError

HISTORY_EVENTS = 20
WEBSOCKET_PATH = "/realtime/ws"
AMOUNTS = ("current", "total")


def job_progress(console: Console) -> Progress:
    """Create a progress bar for a job; its tasks have the field ``link``."""
    return Progress(
        SpinnerColumn(),
        # Both texts are of events and of servers.
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[link]}", style="dim", markup=False),
        console=console,
        transient=False,
    )


def show_update(progress: Progress, bar: TaskID, update: Update, job: str) -> dict[str, Any] | None:
    """Show an update in the bar; return the job's state."""
    state: dict[str, Any] | None = update.view.states.get(job)
    link = "" if update.connection == "live" else _connection_text(update)
    # An application may have sent members of any shape.
    if not isinstance(state, dict):
        progress.update(bar, link=visible(link))
        return None
    amount = state.get("progress")
    current, total = (
        number if isinstance(number, int | float) else None
        for number in (amount.get(name) if isinstance(amount, dict) else None for name in AMOUNTS)
    )
    # The last message of a job that has ended reads as if it still ran.
    message = None if has_ended(state) else state.get("message")
    progress.update(
        bar,
        description=visible(str(message or state.get("status", ""))),
        completed=current or 0,
        total=total,
        link=visible(link),
    )
    return state


@stopping_as_by_ctrl_c()
def run_watch(job: str, url: str, token: str | None, *, as_json: bool) -> int:
    """Follow a job until it ends; return the exit code: 0 if it completed."""
    try:
        topic = name_topic(job)
    except TopicError:
        topic = name_topic(f"job:{job}")
    try:
        return asyncio.run(_watch(topic, websocket_url(url), token, as_json=as_json))
    except KeyboardInterrupt:
        return 130


def websocket_url(address: str) -> str:
    """Return the URL of the WebSocket of a web server's address; another URL stays as it is.

    >>> websocket_url("https://app.example/prefix")
    'wss://app.example/prefix/realtime/ws'
    """
    scheme, separator, rest = address.partition("://")
    scheme = {"http": "ws", "https": "wss"}.get(scheme.lower(), "")
    if not separator or not scheme:
        return address
    path, question_mark, query = rest.partition("?")
    path = path.rstrip("/").removesuffix(WEBSOCKET_PATH) + WEBSOCKET_PATH
    return f"{scheme}://{path}{question_mark}{query}"


async def _watch(topic: str, url: str, token: str | None, *, as_json: bool) -> int:
    _, key = split_topic(topic)
    console = make_console()
    updates = watch(url, topic, token=token, history=HISTORY_EVENTS)
    progress = job_progress(console)
    bar = progress.add_task("waiting", total=None, link="")
    # With --json a program reads stdout: only events may be printed there.
    notes = make_console(stderr=True) if as_json else progress.console
    since, reason = None, ""
    with nullcontext() if as_json else progress:
        async with aclosing(updates):
            async for update in updates:
                if update.connection != "reconnecting" and update.since != since:
                    since = update.since
                    degraded = f"{_connection_text(update)}: showing the host's record"
                    notes.print(plain(degraded if since else "live again"))
                if update.reason not in ("", reason):
                    note = f"{_connection_text(update)}: {update.reason}"
                    notes.print(plain(note))
                reason = update.reason
                if update.gap is not None:
                    notes.print(plain(gap_text(update.gap)))
                for event in update.events:
                    if as_json:
                        # DEL is the one control character that JSON does not escape.
                        print(json.dumps(event).replace("\x7f", "\\u007f"), flush=True)
                    else:
                        progress.console.print(plain(event_line(event, key)))
                show_update(progress, bar, update, key)
                # Not `states`: a provisional end may differ from the end in the log.
                state = update.view.folded.get(key, {})
                if has_ended(state):
                    if state["status"] == "completed":
                        return 0
                    notes.print(plain(end_text(state), "red"))
                    return 1
    console.print("deleted")
    return 1


def end_text(state: dict[str, Any]) -> str:
    """Return how a job ended, with its error if it has one."""
    error = state.get("error") or {}
    parts = (state["status"], error.get("type"), error.get("message"))
    return ": ".join(str(part) for part in parts if part)


def gap_text(gap: Gap) -> str:
    """Return what the server did not send one by one, and why, as a line."""
    if gap.reason == CONFLATED:
        return f"{gap.events} events left out: this connection reads too slowly"
    count = "events" if gap.events is None else f"{gap.events} events"
    return f"{count} replaced by the states: {gap.reason}"


def _connection_text(update: Update) -> str:
    """Return the state of the connection as a text; the time is UTC, as in the events."""
    if update.since is None:
        return update.connection
    return f"{update.connection} since {update.since[11:19]}"


def event_line(event: dict[str, Any], job: str) -> str:
    """Return an event as a line; that of another key than ``job`` names its place or key."""
    members = event.get("data")
    data = (
        [f"{name}={value}" for name, value in members.items()] if isinstance(members, dict) else []
    )
    key = event.get("key")
    if key is not None and key != job:
        data.insert(0, f"[{_place(event) or key}]")
    return f"{event['offset']:>5}  {event['time'][11:23]}  {event['type']}  {' '.join(data)}"


def _place(event: dict[str, Any]) -> str:
    """Return the place of a workflow's member, such as "step 1/2"; empty if it has none."""
    state = event.get("state")
    member = state.get("member") if isinstance(state, dict) else None
    return str(member.get("at", "")) if isinstance(member, dict) else ""
