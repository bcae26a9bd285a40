"""``semantik-realtime publish``: append one event from the command line."""

from __future__ import annotations

import asyncio
import json

from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendUnavailable, EventError
from semantik_realtime.runtime import Runtime


def run_publish(topic: str, type: str, data: str, owner: str | None) -> str:
    """Append one event; return the outcome and, if it was appended, the cursor.

    Raises:
        RealtimeError: The event was not appended, or the backend did not answer whether it was.
    """
    try:
        members = json.loads(data)
    except ValueError as error:
        raise EventError(f"--data is not JSON: {error}") from None
    if not isinstance(members, dict):
        raise EventError("--data must be a JSON object")
    runtime = Runtime()
    try:
        receipt = asyncio.run(runtime.publish(topic, type, data=members, owner=owner))
        if receipt.outcome is Outcome.WAITING:
            # The event is only buffered in this process, which ends now.
            raise BackendUnavailable("the backend is away: see semantik-realtime doctor")
    finally:
        runtime.close()
    return f"{receipt.outcome.value} {receipt.cursor or ''}".rstrip()
