"""The order of a sink's calls after the connection has broken."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import pytest
from semantik_realtime.testing.contract import Author, Recorder, until

from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.stream import Stream

Make = Callable[..., NatsBackend]


async def test_an_event_that_arrives_before_the_confirmation_comes_after_interrupted(
    url: str, make_backend: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, writer, author = make_backend(url), make_backend(url), Author()
    busy, quiet = (f"job:{secrets.token_hex(6)}" for _ in range(2))
    sink, other = Recorder(), Recorder()
    await backend.open()
    await backend.subscribe(busy, sink)
    await backend.subscribe(quiet, other)
    subscriber = backend._subscriber
    assert subscriber is not None
    confirm = subscriber._confirm

    async def confirm_late(stream: Stream, topics: Sequence[str]) -> None:
        await confirm(stream, topics)
        writer.publish([author.draft(busy), author.draft(busy)])
        await sink.wait_for_events(2)

    monkeypatch.setattr(subscriber, "_confirm", confirm_late)
    assert subscriber.stream is not None
    await subscriber.stream.connection.close()
    await until(lambda: other.interruptions, "interrupted() of the quiet topic")
    assert sink.calls[0] == "interrupted"
    assert sink.interruptions == other.interruptions == 1
    assert sink.offsets == [1, 2]
