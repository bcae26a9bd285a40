"""All contenders deliver the same events."""

from __future__ import annotations

import msgspec

from benchmarks.traffic import FIRST_OFFSET, Template, begin_job, emit_events, numbers_without
from semantik_realtime.config import load_settings
from semantik_realtime.runtime import Runtime


async def test_a_peer_publishes_the_same_members_and_length_as_a_job_of_ours() -> None:
    runtime = Runtime(load_settings(backend="memory"))
    emit_events([begin_job(runtime, "4af1")], range(3))
    assert runtime.emitter.flush(10)
    await runtime.backend.open()
    snapshot = await runtime.backend.snapshot("job:4af1", None, 10)
    ours = [event.json for event in snapshot.events][-3:]
    theirs = [Template("4af1").text(number).encode() for number in range(3)]
    await runtime.backend.close()
    runtime.close()
    for our, their in zip(ours, theirs, strict=True):
        assert shape(our) == shape(their)
        assert abs(len(our) - len(their)) <= 1
    assert [msgspec.json.decode(one)["offset"] for one in ours] == [
        FIRST_OFFSET + number for number in range(3)
    ]


def shape(event: bytes) -> object:
    """Return the members of an event, without its times."""
    members = msgspec.json.decode(event)
    assert members.pop("time").endswith("Z")
    assert members["state"].pop("started_at").endswith("Z")
    assert len(members["state"].pop("worker")) == 12
    assert members["data"].pop("at") > 0
    return members


def test_one_event_in_so_many_is_left_out() -> None:
    assert numbers_without(0, 7, 3) == [0, 1, 3, 4, 6]
    assert numbers_without(3, 6, 0) == [3, 4, 5]
