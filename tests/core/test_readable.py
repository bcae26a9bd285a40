"""What counts as readable can be read by every parser; what is not gets one placeholder."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from semantik_realtime.core.event import Cursor, Event, encode_body, with_offset
from semantik_realtime.core.limits import MAX_DEPTH
from semantik_realtime.core.readable import (
    find_body_fault,
    find_fault,
    find_state_fault,
    is_position,
    make_placeholder,
)
from semantik_realtime.errors import EventError

GOOD = b'{"offset":17,"type":"note","time":"","key":"1","state":{"text":"Zo\xc3\xab"}}'


def nested(levels: int, *, key: bool = False) -> bytes:
    """An event of so many levels."""
    inner = levels - 1
    opened, closed = (b'{"a":', b"}") if key else (b"[", b"]")
    return b'{"offset":17,"type":"note","key":"1","state":%b1%b}' % (inner * opened, inner * closed)


@pytest.mark.parametrize(
    "event",
    [
        GOOD,
        b'{"type":"note","offset":17}',
        b'{"offset":99,"type":"note","offset":17}',
        b'{"offset":17,"type":"note","key":"1","state":null,"unknown":[1]}',
        b'{"offset":17,"type":"note","data":{"text":"[[[[' + b"[" * 500 + b'"}}',
        nested(MAX_DEPTH),
        nested(MAX_DEPTH, key=True),
    ],
)
def test_an_event_that_every_client_can_read_has_no_fault(event: bytes) -> None:
    assert find_fault(event, 17) == ""


@pytest.mark.parametrize(
    "event",
    [
        b"",
        b"rubbish",
        b"[]",
        b'"text"',
        GOOD[:-1],
        GOOD + b"x",
        GOOD.replace(b"\xc3", b"\xff"),
        GOOD.replace(b"text", b"te\xffxt"),
        GOOD.replace(b"\xc3\xab", b"\xed\xa0\x80"),
        GOOD.replace(b"\xc3\xab", b"\\ud800"),
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"17", b"18"),
        GOOD.replace(b"17", b"17.0"),
        GOOD.replace(b"17", b'"17"'),
        b'{"type":"note"}',
        b'{"offset":17,"type":"note","offset":18}',
        b'{"offset":17}',
        b'{"offset":17,"type":""}',
        b'{"offset":17,"type":5}',
        b'{"offset":17,"type":"note","key":5}',
        b'{"offset":17,"type":"note","state":{}}',
        b'{"offset":17,"type":"note","time":5}',
        b'{"offset":17,"type":"note","terminal":"yes"}',
        b'{"offset":17,"type":"note","state":NaN}',
        b'{"offset":17,"type":"note","data":1e999}',
        b'{"offset":17,"type":"note","data":1' + b"0" * 5000 + b"}",
        nested(MAX_DEPTH + 1),
        nested(MAX_DEPTH + 1, key=True),
        nested(10_000),
    ],
)
def test_an_event_that_some_client_cannot_read_has_a_fault(event: bytes) -> None:
    assert find_fault(event, 17)


def depth_of(value: object) -> int:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth_of, inner), default=0)
    return 0


def damaged(event: bytes, place: int, byte: int) -> bytes:
    place %= len(event)
    return event[:place] + bytes([byte]) + event[place + 1 :]


@given(
    st.binary(max_size=60)
    | st.builds(damaged, st.just(GOOD), st.integers(0, 1000), st.integers(0, 255))
    | st.integers(90, 110).map(nested)
)
@example(b'{"offset":17,"type":"note"}')
def test_what_has_no_fault_can_be_read_by_a_strict_parser(event: bytes) -> None:
    def refuse(name: str) -> float:
        raise AssertionError(name)

    if find_fault(event, 17) == "":
        found = json.loads(event.decode(), parse_constant=refuse)
        assert found["offset"] == 17
        assert depth_of(found) <= MAX_DEPTH


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)


@given(VALUES, st.dictionaries(st.text(max_size=5), VALUES))
def test_what_can_be_encoded_can_be_read(state: Any, data: dict[str, Any]) -> None:
    try:
        body = encode_body("note", "", "1", state={"value": state}, data=data)
    except EventError:
        return
    assert find_body_fault(body) == ""
    assert find_fault(with_offset(body, 17), 17) == ""
    assert find_state_fault(with_offset(body, 17)) == ""


def test_an_event_that_no_client_could_read_cannot_be_encoded() -> None:
    deep: list[Any] = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    with pytest.raises(EventError, match="nested deeper than"):
        encode_body("note", "", "1", data={"deep": deep})
    assert encode_body("note", "", "1", data={"x": math.nan, "text": "[" * 500})


def test_a_placeholder_is_readable_changes_no_state_and_keeps_the_position() -> None:
    placeholder = make_placeholder(Event(17, 5, b"rubbish"))
    assert (placeholder.offset, placeholder.chain) == (17, 5)
    assert find_fault(placeholder.json, 17) == ""
    head = placeholder.head()
    assert (head.type, head.key, head.change, head.terminal) == ("event_unreadable", "", "", False)


@given(st.text(max_size=70), st.integers(), st.integers())
@example("k3x9", 2**53 - 1, 2**32 - 1)
@example("k3x9", 2**53, 0)
@example('"', 1, 1)
def test_a_position_can_be_sent_back_as_a_cursor(epoch: str, offset: int, chain: int) -> None:
    if is_position(epoch, offset, chain):
        assert Cursor.parse(str(Cursor(epoch, offset, chain))) == Cursor(epoch, offset, chain)
