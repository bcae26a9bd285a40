"""Bodies, heads, chains and cursors."""

import json
import math
import re
import zlib
from collections import UserDict

import msgspec
import pytest
from histories import TIME, draft, drafts, json_texts, json_values, log_of
from hypothesis import example, given
from hypothesis import strategies as st

from semantik_realtime.core.event import (
    Cursor,
    Event,
    StateChange,
    encode_body,
    link,
    position_before,
    with_offset,
)
from semantik_realtime.errors import EventError, EventTooBig

cursors = st.builds(
    Cursor,
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    st.integers(0, 2**53 - 1),
    st.integers(0, 2**32 - 1),
)


def strict(text: bytes) -> object:
    """JSON as browsers read it: no NaN, no infinities, valid UTF-8."""

    def refuse(constant: str) -> object:
        raise ValueError(constant)

    return json.loads(text.decode("utf-8"), parse_constant=refuse)


@given(cursors)
def test_parsing_the_text_of_a_cursor_returns_the_same_cursor(cursor):
    assert Cursor.parse(str(cursor)) == cursor


@given(
    st.text()
    | st.builds("{}{}".format, cursors, st.text(max_size=2))
    | st.builds("{}.{}.{}".format, st.text(max_size=3), st.text(max_size=3), st.text(max_size=9))
)
@example("e.\u0661\u0667.00000001")
@example("e.17.00000001\n")
@example("e.17.0000000G")
@example("e.99999999999999999.00000001")
@example("e.-1.00000001")
@example("." * 10_000)
def test_any_text_parses_to_a_cursor_or_to_one_without_an_epoch(text):
    cursor = Cursor.parse(text)
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}\.[0-9]{1,16}\.[0-9a-f]{8}", text, re.ASCII):
        epoch, offset, chain = text.split(".")
        assert cursor == Cursor(epoch, int(offset), int(chain, 16))
    else:
        assert cursor == Cursor("", 0, 0)


@given(
    st.dictionaries(json_texts, json_values, max_size=3),
    st.dictionaries(json_texts, json_values, max_size=3),
    st.booleans(),
)
def test_a_body_is_json_with_the_given_members(state, data, terminal):
    body = strict(encode_body("note", TIME, "k", state=state, data=data, terminal=terminal))
    expected = {"type": "note", "time": TIME, "key": "k", "state": state}
    if data:
        expected["data"] = data
    if terminal:
        expected["terminal"] = True
    assert body == expected


def test_absent_members_are_left_out_and_a_null_state_is_written():
    assert b"state" not in encode_body("note", TIME, "k")
    assert b'"state":null' in encode_body("note", TIME, "k", state=None)
    assert b"data" not in encode_body("note", TIME, "k", data={})
    assert b"terminal" not in encode_body("note", TIME, "k")


@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.floats()
        | st.text()
        | st.binary(max_size=4)
        | st.complex_numbers()
        | st.decimals()
        | st.datetimes()
        | st.builds(object),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner)
            | st.dictionaries(
                st.text(max_size=3)
                | st.integers()
                | st.floats()
                | st.none()
                | st.booleans()
                | st.tuples(st.integers())
                | st.binary(max_size=2),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    )
)
def test_any_value_becomes_strict_json_or_an_event_error(value):
    try:
        body = encode_body("note", TIME, "k", data={"value": value})
    except EventError:
        return
    assert "value" in strict(body)["data"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities_become_null(number):
    body = encode_body("note", TIME, "k", state={"number": number, "list": [number]})
    assert strict(body)["state"] == {"number": None, "list": [None]}


def _endless() -> dict[str, object]:
    value: dict[str, object] = {}
    value["self"] = value
    return value


def _deep() -> list[object]:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        _endless(),
        _deep(),
        object(),
        "\ud800",
        {"\ud800": 1},
        {None: 1},
        {("a", 1): 1},
        10**5000,
        memoryview(b"abcd")[::2],
        UserDict(),
        lambda: None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_cannot_be_encoded_is_an_event_error_that_names_the_type(value):
    with pytest.raises(EventError, match="event note cannot be encoded"):
        encode_body("note", TIME, "k", state={"value": value})
    with pytest.raises(EventError, match="event note cannot be encoded"):
        encode_body("note", TIME, "k", data={"value": value})


@pytest.mark.parametrize(("type", "key"), [("Note", "k"), ("note", ""), ("note", 42), (None, "k")])
def test_wrong_names_are_event_errors(type, key):
    with pytest.raises(EventError):
        encode_body(type, TIME, key)


@given(st.text(min_size=1, max_size=50).filter(lambda text: text.isprintable()))
def test_the_limit_counts_bytes_and_is_exact(text):
    size = len(encode_body("note", TIME, "k", data={"text": text}))
    encode_body("note", TIME, "k", data={"text": text}, max_bytes=size)
    with pytest.raises(EventTooBig, match=f"{size} bytes, the limit is {size - 1}"):
        encode_body("note", TIME, "k", data={"text": text}, max_bytes=size - 1)


def test_the_default_limit_is_64_kib():
    with pytest.raises(EventTooBig, match="65536"):
        encode_body("note", TIME, "k", data={"text": "x" * 65_536})


@given(drafts, st.integers(1, 2**53 - 1))
def test_the_offset_is_put_in_front_and_nothing_else_changes(one, offset):
    event = strict(with_offset(one.body, offset))
    assert next(iter(event)) == "offset"
    assert event == {"offset": offset, **strict(one.body)}


@given(drafts)
def test_a_head_has_the_members_of_the_draft(one):
    event = log_of([one])[0]
    head = event.head()
    assert (head.offset, head.type, head.time, head.key) == (1, one.type, TIME, one.key)
    assert (head.change, head.terminal) == (one.change, one.terminal)
    members = strict(event.json)
    assert strict(bytes(head.data)) == members.get("data", {})
    if one.change is StateChange.KEEP:
        assert head.state is msgspec.UNSET
    else:
        assert strict(bytes(head.state)) == members["state"]


def test_without_a_key_an_event_changes_no_state():
    head = Event(1, 0, b'{"offset":1,"type":"note","state":{"a":1}}').head()
    assert head.change is StateChange.KEEP


def test_unknown_members_are_ignored():
    assert Event(1, 0, b'{"offset":1,"type":"note","colour":"red"}').head().type == "note"


@given(st.lists(st.binary(max_size=8), max_size=6))
def test_the_chain_is_the_rolling_hash_of_the_bodies(bodies):
    chain = 0
    for body in bodies:
        chain = link(chain, zlib.crc32(body))
    powers = [pow(1_000_003, len(bodies) - 1 - index, 2**32) for index in range(len(bodies))]
    digests = [zlib.crc32(body) for body in bodies]
    assert chain == sum(map(math.prod, zip(digests, powers, strict=True))) % 2**32


@given(st.lists(drafts, min_size=1, max_size=6))
def test_the_position_before_an_event_is_in_its_chain_and_its_bytes(entries):
    log = log_of(entries)
    places = [Cursor("e", 0, 0), *(Cursor("e", event.offset, event.chain) for event in log)]
    assert [position_before("e", event) for event in log] == places[:-1]


@given(st.lists(drafts, min_size=2, max_size=6), st.data())
def test_another_order_or_body_gives_another_chain(entries, data):
    at = data.draw(st.integers(0, len(entries) - 1))
    changed = list(entries)
    changed[at] = draft("zzz", {"changed": True})
    assert log_of(entries)[-1].chain != log_of(changed)[-1].chain
    swapped = [entries[1], entries[0], *entries[2:]]
    if entries[0].body != entries[1].body:
        assert log_of(entries)[-1].chain != log_of(swapped)[-1].chain
