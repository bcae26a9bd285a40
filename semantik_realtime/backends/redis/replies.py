"""What the scripts that read reply, as values, and what those that write publish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semantik_realtime.backends.border import note
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.resume import Reason
from semantik_realtime.hookspecs import Page, Sink, Snapshot, Top


def read_snapshot(reply: Sequence[Any]) -> Snapshot:
    """Return what read.lua replied."""
    if len(reply) < 2:
        return Snapshot(None, deleted=bool(reply))
    epoch, offset, chain, owner, reason, flat_events, flat_states = reply
    return Snapshot(
        _cursor(epoch, offset, chain),
        text(owner) or None,
        Reason(reason.decode()) if reason else None,
        {text(key): event for key, event in zip(flat_states[::2], flat_states[1::2], strict=True)},
        _events(flat_events),
    )


def read_page(reply: Sequence[Any]) -> Page:
    """Return what page.lua replied."""
    if not reply:
        return Page(None)
    epoch, offset, chain, flat_events = reply
    cursor, events = _cursor(epoch, offset, chain), _events(flat_events)
    return Page(cursor, events, bool(events) and events[-1].offset < cursor.offset)


def deliver(topic: str, sink: Sink, payload: bytes) -> None:
    """Call ``sink`` with a message of append.lua or delete.lua.

    Events are ``EPOCH OFFSET CHAIN CHAIN …``, the position before them and the chain of each
    in hexadecimal digits, and then a line for each.
    """
    if payload == b"gone":
        sink.gone(topic)
        return
    try:
        prev, events = _read_message(payload)
    except ValueError as error:
        # No append has published it. If one was lost, the next offset shows it.
        note("message", topic, "unknown", str(error))
    else:
        sink.events(topic, prev, events)


def _read_message(payload: bytes) -> tuple[Cursor, list[Event]]:
    """Return the position before the first event, and the events.

    Raises:
        ValueError: append.lua has not made it.
    """
    head, *bodies = payload.split(b"\n")
    epoch, offset, chain_before, *chains = head.decode().split(" ")
    prev = Cursor(epoch, int(offset), int(chain_before))
    return prev, [
        Event(prev.offset + place, int(chain, 16), body)
        for place, (chain, body) in enumerate(zip(chains, bodies, strict=True), start=1)
    ]


def read_top(reply: Any) -> Top | None:
    """Return the end of a topic by four fields of its meta; None if nothing was appended.

    Raises:
        TypeError, ValueError: another program has written them.
    """
    epoch, offset, chain, owner = reply
    if epoch is None or offset in (None, b"0"):
        return None
    cursor = Cursor(text(epoch), int(offset), int(chain))
    return Top(cursor, text(owner) if owner is not None else None)


def text(value: bytes) -> str:
    """Decode what another program may have written: wrong bytes make it no epoch and no user."""
    return value.decode(errors="replace")


def _cursor(epoch: bytes, offset: bytes, chain: bytes) -> Cursor:
    return Cursor(text(epoch), int(offset), int(chain, 16))


def _events(flat: Sequence[bytes]) -> list[Event]:
    """Return the events of ``event, "ID CHAIN", …``."""
    events = []
    for body, mark in zip(flat[::2], flat[1::2], strict=True):
        entry, _, chain = mark.partition(b" ")
        events.append(Event(int(entry.partition(b"-")[0]), int(chain, 16), body))
    return events
