"""``semantik-realtime publish``: append one event from the command line."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import msgspec

from semantik_realtime.core.event import Outcome, Receipt
from semantik_realtime.core.topic import name_topic, split_topic
from semantik_realtime.errors import BackendUnavailable, EventError
from semantik_realtime.runtime import Runtime


def run_publish(
    topic: str,
    type: str,
    *,
    data: str | None,
    state: str | None,
    owner: str | None,
    attempt: str | None,
) -> str:
    """Append one event; return the outcome, then the cursor and a new attempt if there are any.

    Raises:
        RealtimeError: The event was not appended, or the backend did not answer whether it was.
    """
    given = {
        "data": _parse("--data", data or "{}"),
        "state": msgspec.UNSET if state is None else _parse("--state", state),
    }
    topic = name_topic(topic)
    kind, job = split_topic(topic)
    if attempt is not None:
        if kind != "job":
            raise EventError(f"--attempt is of a job's topic, not of {topic}")
        if attempt != "new" and not re.fullmatch("[0-9]{1,15}", attempt):
            raise EventError(f"--attempt is a number or the word new, not {attempt!r}")
    runtime = Runtime()

    async def publish() -> tuple[Receipt, int | None]:
        if attempt == "new":
            number: int | None = await runtime.begin_attempt(job)
        else:
            number = None if attempt is None else int(attempt)
        return await runtime.publish(topic, type, owner=owner, attempt=number, **given), number

    try:
        receipt, number = asyncio.run(publish())
        if receipt.outcome is Outcome.WAITING:
            # The event is only buffered in this process, which ends now.
            raise BackendUnavailable("the backend is away: see semantik-realtime doctor")
    finally:
        runtime.close()
    parts = [receipt.outcome.value, str(receipt.cursor or "")]
    if attempt == "new":
        parts.append(f"attempt {number}")
    return " ".join(part for part in parts if part)


def _parse(option: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EventError(f"{option} is not JSON: {error}") from None
    if not isinstance(value, dict) and not (option == "--state" and value is None):
        raise EventError(f"{option} must be a JSON object")
    return value
