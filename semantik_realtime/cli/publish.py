"""``semantik-realtime publish``: append one event from the command line."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec

from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendUnavailable, EventError
from semantik_realtime.runtime import Runtime


def run_publish(topic: str, type: str, data: str, state: str | None, owner: str | None) -> str:
    """Append one event; return the outcome and, if it was appended, the cursor.

    Raises:
        RealtimeError: The event was not appended, or the backend did not answer whether it was.
    """
    given = {
        "data": _parse("--data", data),
        "state": msgspec.UNSET if state is None else _parse("--state", state),
    }
    runtime = Runtime()
    try:
        receipt = asyncio.run(runtime.publish(topic, type, owner=owner, **given))
        if receipt.outcome is Outcome.WAITING:
            # The event is only buffered in this process, which ends now.
            raise BackendUnavailable("the backend is away: see semantik-realtime doctor")
    finally:
        runtime.close()
    return f"{receipt.outcome.value} {receipt.cursor or ''}".rstrip()


def _parse(option: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EventError(f"{option} is not JSON: {error}") from None
    if not isinstance(value, dict) and not (option == "--state" and value is None):
        raise EventError(f"{option} must be a JSON object")
    return value
