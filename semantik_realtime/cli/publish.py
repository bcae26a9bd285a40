"""``semantik-realtime publish``: one event, by hand."""

from __future__ import annotations

import asyncio
import json

from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendUnavailable, EventError
from semantik_realtime.runtime import Runtime


def run_publish(topic: str, type: str, data: str, owner: str | None) -> str:
    """What the backend answered.

    Raises:
        RealtimeError: nothing was appended, or nobody knows.
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
            # Nobody stays to send it later.
            raise BackendUnavailable("the backend is away (semantik-realtime doctor says more)")
    finally:
        runtime.close()
    return f"{receipt.outcome.value} {receipt.cursor or ''}".rstrip()
