"""Whatever a log holds, no reader of a wire fails over it."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
from clients import CompatClient, NativeClient
from hypothesis import given
from hypothesis import strategies as st
from publisher import Publisher
from web_servers import InProcessServer

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.fold import View, is_ahead
from semantik_realtime.core.lifecycle import STATUS_OF_TYPE, has_ended
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.wires import wire as wire_module
from semantik_realtime.web.wires.compat import CompatWire
from semantik_realtime.web.wires.wire import Outgoing, Sync, states_of

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
STATE = JSON | st.dictionaries(
    st.sampled_from(["status", "attempt", "progress", "message", "fields", "error", "name"]),
    JSON
    | st.sampled_from(["running", "completed"])
    | st.fixed_dictionaries({"current": JSON, "total": JSON}),
)
TYPE = st.sampled_from(["note", "job_failed", "job_progress", "job_deleted"]) | JSON
EVENT = JSON | st.fixed_dictionaries(
    {"type": TYPE},
    optional={
        "key": st.sampled_from(["1", "2"]) | JSON,
        "state": STATE,
        "data": STATE,
        "terminal": st.booleans() | JSON,
        "time": JSON,
    },
)
NESTED = b'{"type":"note","key":"1","state":' + b"[" * 3000 + b"]" * 3000 + b"}"


def encoded(value: object) -> bytes:
    return msgspec.json.encode(value)


def outgoing(events: list[Event]) -> Outgoing:
    return Outgoing(Cursor("e", len(events), 0), events, 0, b"", "", None)


@given(
    st.sampled_from(["job:1", "user:7"]),
    st.lists(EVENT.map(encoded) | st.just(NESTED) | st.just(b"rubbish"), max_size=6),
    st.dictionaries(st.sampled_from(["1", "2"]), EVENT.map(encoded) | st.just(NESTED)),
    st.dictionaries(st.sampled_from(["1", "2"]), STATE.map(encoded) | st.just(b"[" * 9000)),
)
def test_the_compatibility_wire_never_raises(
    topic: str, bodies: list[bytes], states: dict[str, bytes], provisional: dict[str, bytes]
) -> None:
    wire = CompatWire(topic, lambda: "now")
    events = [Event(number, 0, body) for number, body in enumerate(bodies, start=1)]
    cursor = Cursor("e", len(events), 0)
    messages = wire.sync(Sync(topic, None, Snapshot(cursor, states=states, events=events)))
    messages += wire.events([(topic, outgoing(events))])
    messages += wire.provisional(topic, "p", "memory", provisional)
    messages += wire.events([(topic, outgoing(events))])
    messages += [*wire.degraded("now"), *wire.restored(), *wire.gone(topic)]
    for message in messages:
        assert isinstance(msgspec.json.decode(message)["data"], dict)


@pytest.mark.parametrize("type", STATUS_OF_TYPE)
def test_an_event_whose_state_cannot_be_read_still_sets_the_status_of_its_type(type: str) -> None:
    wire = CompatWire("job:1", lambda: "now")
    event = Event(1, 0, encoded({"type": type, "key": "1", "state": "x", "data": "y"}))
    [message] = wire.events([("job:1", outgoing([event]))])
    assert msgspec.json.decode(message)["data"]["status"] == STATUS_OF_TYPE[type]


@given(STATE, STATE)
def test_any_two_states_can_be_compared(state: Any, other: Any) -> None:
    assert not (is_ahead(state, other) and is_ahead(other, state))
    has_ended(state)


@given(STATE, STATE)
def test_a_view_shows_states_of_any_shape(state: Any, other: Any) -> None:
    view = View("job:1")
    view.sync({"mode": "snapshot", "offset": 0, "cursor": "c", "states": {"1": state}})
    view.provisional({"1": other})
    view.restored()
    assert "1" in view.states


def test_an_event_that_cannot_be_read_is_left_out_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wire_module.unreadable.clear()
    good = encoded({"type": "note", "key": "1", "state": {"status": "running"}})
    snapshot = Snapshot(Cursor("e", 1, 0), states={"1": good, "2": NESTED, "3": b"rubbish"})
    with caplog.at_level(logging.WARNING, "semantik_realtime"):
        assert states_of("job:1", snapshot) == {"1": b'{"status":"running"}'}
    assert wire_module.unreadable == {"event": 2}
    assert [record.getMessage() for record in caplog.records] == [
        "wire: unreadable event left out topic=job:1 (logged once)"
    ]


async def test_watchers_of_every_wire_stay_connected(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        CompatClient(web_server.compat_url("1")) as browser,
        NativeClient(web_server, "job:1") as native,
    ):
        await native.wait_synced()
        for state, data in (("running", "x"), ({"status": ["a"]}, [1]), ({"attempt": "1"}, 5)):
            publisher.emit("job:1", state=state, data=data)
        await publisher.publish("job:1", 1)
        await native.wait_for_offset("job:1", 5)
        await browser.wait_for("step", 5)
        assert browser.closed is None
    async with CompatClient(web_server.compat_url("1")) as late, web_server.http_client() as http:
        await late.wait_for("step", 5)
        assert late.messages[0]["data"]["status"] == "running"
        for path in ("/realtime/jobs/1", "/realtime/jobs/1/history"):
            assert (await http.get(path)).status_code == 200
