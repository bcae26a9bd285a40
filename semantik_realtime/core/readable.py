"""Whether every client can read an event, and what it gets in place of one that it cannot.

A log may hold anything: a disk has damaged a byte, another program has written
to the server, or a release with another idea of an event. What cannot be read
stays in the log and keeps its offset; readers get a placeholder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from semantik_realtime.core.event import Cursor, Event, is_too_deep, with_offset

UNREADABLE_TYPE = "event_unreadable"
"""The type of a placeholder."""
MAX_OFFSET = 2**53
"""Offsets are below: JavaScript and Lua have no larger integers."""

_EPOCH = re.compile(r"[A-Za-z0-9_-]{1,64}")
_decode = msgspec.json.Decoder().decode


def find_fault(event: bytes, offset: int | None) -> str:
    """Return why a client could not read an event of a log, or "" if every client can.

    It is UTF-8 and one JSON object (RFC 8259) with members of the types that
    docs/protocol.md names, at most `MAX_DEPTH` levels deep (`core.limits`), and
    no number is beyond what JavaScript and Python can read. ``offset`` is the
    one in the log, or None where the event may have any. Never raises.

    >>> find_fault(b'{"offset":17,"type":"note"}', 17)
    ''
    >>> find_fault(b'{"offset":17,"type":"note"}', 18)
    'its offset is another one'
    >>> find_fault(b'{"offset":17,"type":"note","state":NaN}', 17)
    'it is no JSON'
    """
    try:
        found = _decode(event)
    except UnicodeError:
        return "it is no UTF-8"
    except RecursionError:
        return "it is nested too deeply"
    except msgspec.DecodeError:
        return "it is no JSON"
    if not isinstance(found, dict):
        return "it is no JSON object"
    if fault := _find_wrong_member(found):
        return fault
    if offset is not None and found.get("offset") != offset:
        return "its offset is another one"
    return "it is nested too deeply" if is_too_deep(event) else ""


def _find_wrong_member(found: Mapping[str, Any]) -> str:
    offset, type, key = found.get("offset"), found.get("type"), found.get("key", "")
    # JSON's 1.0 is another value than 1 for most readers, and true is 1 for Python.
    if not isinstance(offset, int) or isinstance(offset, bool):
        return "it has no offset"
    if not isinstance(type, str) or not type:
        return "it has no type"
    if not isinstance(key, str) or (not key and "state" in found):
        return "it has no key"
    if not isinstance(found.get("time", ""), str):
        return "its time is no text"
    if not isinstance(found.get("terminal", False), bool):
        return "its member terminal is no boolean"
    return ""


def find_body_fault(body: bytes) -> str:
    """Return why an event could not be read if a log appended ``body``, or "" if it could.

    >>> find_body_fault(b'{"type":"note","key":"1"}'), find_body_fault(b"{}")
    ('', 'it is no JSON')
    """
    return find_fault(with_offset(body, 1), 1) if body[:1] == b"{" else "it is no JSON object"


def find_state_fault(event: bytes) -> str:
    """Return why the state in an event could not be read, or "" if every client can read it.

    >>> find_state_fault(b'{"offset":17,"type":"note","key":"1"}')
    'it has no state'
    """
    fault = find_fault(event, None)
    if not fault and _decode(event).get("state") is None:
        return "it has no state"
    return fault


def make_placeholder(event: Event) -> Event:
    """Return what a reader gets in place of an event that cannot be read: it changes nothing.

    The same at every server, so that two readings of a log agree.

    >>> make_placeholder(Event(17, 5, b"rubbish")).json
    b'{"offset":17,"type":"event_unreadable","time":"","key":""}'
    """
    body = b'{"type":"%b","time":"","key":""}' % UNREADABLE_TYPE.encode()
    return Event(event.offset, event.chain, with_offset(body, event.offset))


def is_position(epoch: str, offset: int, chain: int) -> bool:
    """Return True if these are a position in a log, which a client can send back as a cursor.

    >>> is_position("k3x9", 17, 0), is_position('"', 17, 0), is_position("k3x9", -1, 0)
    (True, False, False)
    """
    return 0 <= offset < MAX_OFFSET and 0 <= chain < 2**32 and _EPOCH.fullmatch(epoch) is not None


def is_cursor(cursor: Cursor) -> bool:
    """The same of a cursor."""
    return is_position(cursor.epoch, cursor.offset, cursor.chain)
