"""What all contenders carry is the same."""

from __future__ import annotations

import msgspec

from benchmarks.traffic import FIRST_OFFSET, Template, begin_job, keep, tell
from semantik_realtime.config import load_settings
from semantik_realtime.runtime import Runtime


async def test_a_peer_carries_the_same_bytes_as_a_job_of_ours() -> None:
    runtime = Runtime(load_settings(backend="memory"))
    tell([begin_job(runtime, "4af1")], range(3))
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
    """An event without its times."""
    members = msgspec.json.decode(event)
    assert members.pop("time").endswith("Z")
    assert members["state"].pop("started_at").endswith("Z")
    assert members["data"].pop("at") > 0
    return members


def test_every_so_manieth_event_is_left_out_if_asked() -> None:
    assert keep(0, 7, 3) == [0, 1, 3, 4, 6]
    assert keep(3, 6, 0) == [3, 4, 5]
