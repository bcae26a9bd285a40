"""Servers that are killed, hang, lose data, or cannot be used at all."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import time
from collections.abc import Callable

import pytest
from semantik_realtime.core.event import Cursor, Outcome
from semantik_realtime.core.event import link as chain_link
from semantik_realtime.core.resume import Reason
from semantik_realtime.errors import (
    AppendUncertain,
    BackendRefused,
    BackendUnavailable,
)
from semantik_realtime.testing.contract import Author, Recorder, until
from semantik_realtime.testing.servers import NatsServer, free_port

from semantik_realtime_nats.backend import NatsBackend

Make = Callable[..., NatsBackend]


@pytest.fixture
def topic() -> str:
    return f"job:{secrets.token_hex(6)}"


def has_open_requests(backend: NatsBackend) -> bool:
    """Return True while a request of the writer waits for its reply."""
    running = backend._writer._running
    assert running is not None
    stream = running.worker._stream
    return stream is not None and bool(stream.connection._requests)


async def test_a_killed_server_still_has_everything_that_it_acknowledged(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(server.url), Author()
    receipts = []
    for n in range(10):
        receipts += backend.publish([author.draft(topic, state={"n": n}) for _ in range(30)])
    server.kill()
    server.start()
    await backend.open()
    snapshot = await backend.snapshot(topic, receipts[100].cursor, 0)
    assert snapshot.reason is None
    assert snapshot.cursor == receipts[-1].cursor
    assert [event.offset for event in snapshot.events] == [*range(102, 301)]


async def test_after_a_restart_the_sink_gets_interrupted_and_then_the_next_events(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author, sink = make_backend(server.url), Author(), Recorder()
    await backend.open()
    await backend.subscribe(topic, sink)
    backend.publish([author.draft(topic)])
    await sink.wait_for_events(1)
    server.kill()
    server.start()
    await until(lambda: sink.interruptions)
    backend.publish([author.draft(topic)])
    await sink.wait_for_events(2)
    assert sink.offsets == [1, 2]
    assert sink.interruptions == 1
    assert (await backend.tops([topic]))[topic].cursor.offset == 2


async def test_a_read_without_a_connection_waits_for_the_next_attempt_to_connect(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend = make_backend(server.url)
    await backend.open()
    backend.publish([Author().draft(topic)])
    for _ in range(3):
        server.kill()
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match=r"ConnectionRefused|connection lost"):
                await backend.tops([topic])
        server.start()
        assert (await backend.tops([topic]))[topic].cursor.offset == 1


async def test_a_topic_subscribed_during_an_outage_gets_events_after_it(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, sink = make_backend(server.url), Recorder()
    await backend.open()
    server.kill()
    subscribing = asyncio.create_task(backend.subscribe(topic, sink))
    server.start()
    await subscribing
    backend.publish([Author().draft(topic)])
    await sink.wait_for_events(1)


async def test_a_subscription_that_is_not_confirmed_fails_in_time(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend = make_backend(server.url, timeout_seconds=0.5)
    await backend.open()
    server.pause()
    with pytest.raises(BackendUnavailable, match=topic):
        await backend.subscribe(topic, Recorder())
    server.resume()


async def test_without_a_server_every_call_fails_in_time_and_nothing_is_written(
    make_backend: Make, topic: str
) -> None:
    backend = make_backend(f"nats://127.0.0.1:{free_port()}")
    start = time.monotonic()
    with pytest.raises(BackendUnavailable, match="ConnectionRefused"):
        backend.publish([Author().draft(topic)])
    with pytest.raises(BackendUnavailable):
        await backend.open()
    assert time.monotonic() - start < 5
    status = await backend.status()
    assert not status.reachable


async def test_an_append_to_a_hanging_server_is_uncertain_and_its_retry_is_safe(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(server.url, timeout_seconds=1.0), Author()
    backend.publish([author.draft(topic)])
    drafts = [author.draft(topic) for _ in range(5)]
    server.pause()
    start = time.monotonic()
    with pytest.raises(AppendUncertain):
        backend.publish(drafts)
    with pytest.raises(BackendUnavailable):
        backend.publish([Author().draft(topic)])
    assert time.monotonic() - start < 5
    server.resume()
    # What was sent before the connection was closed may have arrived, or not.
    outcomes = {receipt.outcome for receipt in backend.publish(drafts)}
    assert outcomes in ({Outcome.APPENDED}, {Outcome.DUPLICATE})
    await backend.open()
    assert len((await backend.snapshot(topic, None, 100)).events) == 6


async def test_an_append_that_was_sent_before_the_server_was_killed_is_uncertain(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(server.url), Author()
    backend.publish([author.draft(topic)])
    server.pause()
    publishing = asyncio.create_task(asyncio.to_thread(backend.publish, [author.draft(topic)]))
    await until(lambda: has_open_requests(backend))
    server.kill()
    with pytest.raises(AppendUncertain):
        await publishing


async def test_a_read_from_a_hanging_server_fails_in_time(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend = make_backend(server.url, timeout_seconds=0.5)
    await backend.open()
    server.pause()
    start = time.monotonic()
    for call in (lambda: backend.snapshot(topic, None, 0), lambda: backend.tops([topic])):
        with pytest.raises(BackendUnavailable):
            await call()
    assert not (await backend.status()).reachable
    assert time.monotonic() - start < 5
    server.resume()


async def test_a_server_that_lost_its_data_begins_new_epochs(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(server.url), Author()
    await backend.open()
    [before] = backend.publish([author.draft(topic)])
    server.kill()
    server.wipe()
    server.start()
    [after] = backend.publish([author.draft(topic)])
    assert after.outcome is Outcome.APPENDED
    assert after.cursor is not None
    assert before.cursor is not None
    assert after.cursor.epoch != before.cursor.epoch

    async def read_reason() -> Reason | None:
        try:
            return (await backend.snapshot(topic, before.cursor, 0)).reason
        except BackendUnavailable:
            return None

    async with asyncio.timeout(10):
        while await read_reason() is not Reason.EPOCH:
            await asyncio.sleep(0.02)


async def test_a_server_that_lost_its_newest_events_is_recognised_by_the_chain(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    one, other = make_backend(server.url), make_backend(server.url)
    author, stranger = Author(), Author()
    one.publish([author.draft(topic)])
    server.stop()
    saved = server.directory / "saved"
    shutil.copytree(server.directory / "jetstream", saved)
    server.start()
    [lost] = one.publish([author.draft(topic, data={"lost": True})])
    server.kill()
    server.wipe()
    saved.rename(server.directory / "jetstream")
    server.start()
    # The same sequence and the same offset as the lost event, but another history.
    [replaced] = other.publish([stranger.draft(topic)])
    last = author.draft(topic)
    [receipt] = one.publish([last])
    assert replaced.cursor is not None
    assert lost.cursor is not None
    assert receipt.cursor == Cursor(
        replaced.cursor.epoch, 3, chain_link(replaced.cursor.chain, last.digest)
    )
    await one.open()
    assert (await one.snapshot(topic, lost.cursor, 0)).reason is Reason.DIVERGED
    snapshot = await one.snapshot(topic, replaced.cursor, 0)
    assert snapshot.reason is None
    assert snapshot.cursor == receipt.cursor


async def test_of_several_servers_one_is_enough(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    dead = f"nats://127.0.0.1:{free_port()}"
    for _ in range(4):
        backend = make_backend(f"{dead}, {server.url}")
        assert backend.publish([Author().draft(topic)])[0].outcome is Outcome.APPENDED
        await backend.open()


async def test_a_server_that_hangs_does_not_prevent_the_use_of_another(
    start_server: Callable[..., NatsServer], make_backend: Make, topic: str
) -> None:
    hanging, working = start_server(), start_server()
    hanging.pause()
    for _ in range(4):
        backend = make_backend(f"{hanging.url},{working.url}")
        assert backend.publish([Author().draft(topic)])[0].outcome is Outcome.APPENDED


async def test_a_server_without_jetstream_is_refused_with_an_error_that_says_so(
    start_server: Callable[..., NatsServer], make_backend: Make, topic: str
) -> None:
    backend = make_backend(start_server(jetstream=False).url)
    with pytest.raises(BackendRefused, match="no JetStream; start it with -js"):
        backend.publish([Author().draft(topic)])
    with pytest.raises(BackendRefused, match="no JetStream"):
        await backend.open()
    assert "no JetStream" in (await backend.status()).server


async def test_a_server_that_is_too_old_is_refused_with_an_error_that_says_so(
    make_backend: Make,
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"version": "2.10.29", "headers": True, "max_payload": 2**20, "proto": 1}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as old:
        backend = make_backend(f"nats://127.0.0.1:{old.sockets[0].getsockname()[1]}")
        with pytest.raises(BackendRefused, match=r"is NATS 2\.10\.29; 2\.11 or newer is needed"):
            await backend.open()
        assert "2.11 or newer" in (await backend.status()).server


USERS = """
authorization { users: [
  {user: allowed, password: secret}
  {user: reader, password: secret, permissions: {publish: {deny: ["semantik.>"]}}}
  {user: nobody, password: secret, permissions: {publish: ["none"]}}
]}
"""


async def test_wrong_credentials_are_refused_and_right_ones_work(
    start_server: Callable[..., NatsServer], make_backend: Make, topic: str
) -> None:
    url = start_server(config=USERS).url
    allowed = make_backend(url.replace("://", "://allowed:secret@"))
    assert allowed.publish([Author().draft(topic)])[0].outcome is Outcome.APPENDED
    for wrong in (url, url.replace("://", "://allowed:wrong@")):
        backend = make_backend(wrong)
        start = time.monotonic()
        with pytest.raises(BackendRefused, match="credentials") as caught:
            backend.publish([Author().draft(topic)])
        assert time.monotonic() - start < 4
        assert "wrong@" not in str(caught.value)
        with pytest.raises(BackendRefused):
            await backend.open()


@pytest.mark.parametrize("user", ["reader", "nobody"])
async def test_a_user_without_the_permissions_is_refused_at_once(
    start_server: Callable[..., NatsServer], make_backend: Make, topic: str, user: str
) -> None:
    url = start_server(config=USERS).url
    allowed = make_backend(url.replace("://", "://allowed:secret@"))
    allowed.publish([Author().draft(topic)])
    backend = make_backend(url.replace("://", f"://{user}:secret@"))
    start = time.monotonic()
    with pytest.raises(BackendRefused, match="permissions"):
        backend.publish([Author().draft(topic)])
    assert time.monotonic() - start < 4
    if user == "nobody":
        with pytest.raises(BackendRefused, match="permissions"):
            await backend.open()
        assert "permissions" in (await backend.status()).server


async def test_a_stream_with_other_settings_is_refused_with_an_error_that_names_it(
    server: NatsServer, make_backend: Make, monkeypatch: pytest.MonkeyPatch, topic: str
) -> None:
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_STREAM", "shared")
    make_backend(server.url).publish([Author().draft(topic)])
    with pytest.raises(BackendRefused, match="stream shared has other settings"):
        make_backend(server.url, prefix="other").publish([Author().draft(topic)])


async def test_the_status_warns_of_what_a_power_failure_may_lose(
    server: NatsServer, make_backend: Make
) -> None:
    status = await make_backend(server.url).status()
    assert status.reachable
    assert status.server.startswith("nats 2.")
    assert "sync_interval" in " ".join(status.warnings)
    assert status.clock_ahead_seconds is not None
    assert abs(status.clock_ahead_seconds) < 1


async def test_after_an_outage_writes_succeed_without_any_intervention(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(server.url), Author()
    backend.publish([author.draft(topic)])
    server.kill()
    lost = author.draft(topic)
    with pytest.raises((BackendUnavailable, AppendUncertain)):
        backend.publish([lost])
    server.start()
    assert backend.publish([lost])[0].outcome is Outcome.APPENDED
