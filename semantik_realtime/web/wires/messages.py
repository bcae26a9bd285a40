"""What the clients of the compatibility wire read: flat states in JSON messages, and answers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from semantik_realtime.core.limits import MAX_FRAME_BYTES
from semantik_realtime.web.wires.wire import note_unreadable

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def read_members(part: str, encoded: bytes | msgspec.Raw, topic: str) -> dict[str, Any] | None:
    """Return a state or the data of an event; None, and noted, if it is no JSON object.

    ``null`` has no members.
    """
    try:
        members = _decode(encoded)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        members = ()
    if members is None or isinstance(members, dict):
        return members or {}
    note_unreadable(part, topic)
    return None


def flatten(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state as these clients expect it: one level, with a status.

    >>> flatten({"status": "running", "progress": {"current": 1, "total": 4}, "fields": {"a": 0}})
    {'a': 0, 'status': 'running', 'progress': 25.0, 'current': 1, 'total': 4}

    An application may put anything into a state; members of another shape are
    passed on unchanged.
    """
    fields, progress, error = (state.get(name) for name in ("fields", "progress", "error"))
    flat: dict[str, Any] = dict(fields) if isinstance(fields, Mapping) else {}
    flat["status"] = state.get("status") or "unknown"
    if isinstance(progress, Mapping):
        current, total = progress.get("current"), progress.get("total")
        flat["progress"] = _percent(current, total)
        flat["current"], flat["total"] = current, total
    elif progress is not None:
        flat["progress"] = progress
    for name in ("message", "attempt", "name"):
        if state.get(name) is not None:
            flat[name] = state[name]
    if isinstance(error, Mapping):
        flat["error"] = error.get("message") or error.get("type")
    elif error is not None:
        flat["error"] = error
    return flat


def _percent(current: Any, total: Any) -> float | None:
    if isinstance(current, int | float) and isinstance(total, int | float) and total > 0:
        # JSON's integers have no bound, and those of a float have one.
        with contextlib.suppress(OverflowError):
            return round(100 * current / total, 1)
    return None


def encode_message(message: dict[str, Any], topic: str) -> str:
    """Return a message as JSON; of data that is nested too deeply, the flat members."""
    try:
        return _encode(message).decode()
    except RecursionError:
        # One level deeper here than in the event.
        note_unreadable("data", topic)
        data = message["data"].items()
        message["data"] = {n: v for n, v in data if not isinstance(v, dict | list)}
        return _encode(message).decode()


def answer(text: str | bytes, now: str) -> list[str]:
    """Return the answer to a client's message at the time ``now``, if it gets one.

    >>> answer("ping", "2026-01-01T00:00:00.000Z")
    ['{"type":"pong","timestamp":"2026-01-01T00:00:00.000Z"}']
    """
    if len(text) > MAX_FRAME_BYTES:
        return _error("too big", now)
    if text in ("ping", b"ping"):
        message = {"type": "ping"}
    else:
        try:
            message = _decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return _error("expected JSON", now)
    match message:
        case {"type": "ping"}:
            return [_encode({"type": "pong", "timestamp": now}).decode()]
        case {"type": "pong"}:
            return []
    return _error("only ping is understood", now)


def _error(message: str, now: str) -> list[str]:
    error = {"type": "error", "timestamp": now, "data": {"message": message}}
    return [_encode(error).decode()]
