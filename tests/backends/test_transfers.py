"""Whole topics on real servers: copies are verbatim, and a closed server accepts nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest
import redis

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.cli.migrate import make_transfer
from semantik_realtime.cli.migrate_copy import Copier, MigrationFailed, Side
from semantik_realtime.config import Settings
from semantik_realtime.core.copying import (
    DELETED,
    UNKNOWN,
    Mark,
    Role,
    TopicCopy,
    keep_sound_events,
)
from semantik_realtime.core.event import Cursor, Draft, Outcome, StateChange, encode_body
from semantik_realtime.errors import BackendRefused, BackendUnavailable
from semantik_realtime.hookspecs import Backend
from semantik_realtime.testing.servers import ROWS
from semantik_realtime.transfer import Transfer

PAIRS = [
    pytest.param(("valkey", "nats"), marks=pytest.mark.nats),
    pytest.param(("nats", "valkey"), marks=pytest.mark.nats),
    pytest.param(("valkey", "cluster"), marks=pytest.mark.cluster),
]
RETAINED = 150
PREFIXES = iter(range(10**6))


class Place(NamedTuple):
    """A server, as processes see it and as a migration sees it."""

    backend: Backend
    transfer: Transfer
    prefix: str

    @property
    def side(self) -> Side:
        return Side("it", self.transfer)


def draft(own: str, number: int, producer: str = "p", **given: Any) -> Draft:
    """Return an event with a state of a job in its own topic."""
    state = {"status": "running", "n": number}
    given = {"topic": f"job:{own}", "key": own, "job": own, "attempt": 1, "owner": "7", **given}
    body = encode_body("step", "", given["key"], state=state, terminal=given.get("terminal", False))
    more = {"change": StateChange.SET, "producer": producer, "number": number}
    return Draft(type="step", body=body, **more, **given)


@pytest.fixture
async def places(
    request: pytest.FixtureRequest,
    server_url: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Place, Place]]:
    """A source and a target, with a prefix of the test's own."""
    prefix = f"move{os.getpid()}x{next(PREFIXES)}"
    monkeypatch.setenv("SEMANTIK_REALTIME_PREFIX", prefix)
    monkeypatch.setenv("SEMANTIK_REALTIME_RETENTION_EVENTS", str(RETAINED))
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for row in request.param:
            settings = Settings(url=server_url(row), backend=ROWS[row].backend)
            backend, transfer = load_backend(settings), make_transfer(str(settings.url))
            stack.callback(backend.close_writer)
            stack.push_async_callback(backend.close)
            stack.push_async_callback(transfer.close)
            await backend.open()
            await transfer.open()
            made.append(Place(backend, transfer, prefix))
        yield made[0], made[1]


def copier(source: Place, target: Place) -> Copier:
    return Copier(Side("FROM", source.transfer), Side("TO", target.transfer))


async def read(place: Place, topic: str) -> TopicCopy:
    copy = await place.transfer.read(topic, 0)
    assert copy is not None
    keep_sound_events(copy)
    return copy


@pytest.mark.parametrize("places", PAIRS, indirect=True)
async def test_a_copy_is_verbatim_and_is_continued(places: tuple[Place, Place]) -> None:
    source, target = places
    write = source.backend.publish
    assert source.backend.claim("job:1", "1", "token", "7") == 1
    # More than are kept.
    write([draft("1", number) for number in range(1, RETAINED + 51)])
    write([draft("1", 1, "q", key="child", job=None, attempt=None)])
    source.backend.claim("job:2", "2", "other", "7")
    write([draft("3", 1, due_at=time.time() + 5000)])
    write([draft("4", 1), draft("4", 2, terminal=True)])
    source.backend.delete("job:5")
    topics = {f"job:{job}" for job in range(1, 6)}

    moving = copier(source, target)
    assert await moving.copy_round() == 5
    before = (await target.backend.tops(["job:1"]))["job:1"].cursor
    write([draft("1", RETAINED + 51)])
    assert await moving.copy_round() == 1
    assert await moving.copy_round(thorough=True) == 0
    source.backend.claim("job:2", "2", "newer", "7")
    assert await moving.copy_round(thorough=True) == 1
    comparison = await moving.compare()
    assert (comparison.equal, comparison.differences) == (5, 0)

    for topic in topics:
        one, other = await read(source, topic), await read(target, topic)
        assert one.digest() == other.digest()
        assert one.place == other.place
        assert abs(one.keep_seconds - other.keep_seconds) < 5
        # A copy of a source may keep a few more events than are read of it.
        assert list(one.events)[-RETAINED:] == list(other.events)[-RETAINED:]
    for place in places:
        snapshot = await place.backend.snapshot("job:1", before, 0)
        assert (snapshot.reason, len(snapshot.events), snapshot.owner) == (None, 1, "7")
        trimmed = await place.backend.snapshot("job:1", Cursor(before.epoch, 1, 0), 0)
        assert trimmed.reason is not None
        assert set(trimmed.states) == {"1", "child"}
        assert (await place.backend.snapshot("job:5", None, 0)).deleted
    write = target.backend.publish
    receipts = write([draft("1", RETAINED + 51), draft("1", 1, "q"), draft("1", RETAINED + 52)])
    assert [receipt.outcome for receipt in receipts] == [
        *(Outcome.DUPLICATE, Outcome.DUPLICATE, Outcome.APPENDED)
    ]
    assert receipts[0].cursor is not None
    assert receipts[0].cursor.offset == RETAINED + 52
    assert target.backend.claim("job:1", "1", "token", "7") == 1
    assert target.backend.claim("job:2", "2", "newer", "7") == 2
    assert target.backend.claim("job:2", "2", "newest", "7") == 3
    [ended] = write([draft("4", 3)])
    assert ended.outcome is Outcome.CLOSED
    [deleted] = write([draft("5", 1)])
    assert deleted.outcome is Outcome.CLOSED


@pytest.mark.parametrize("places", PAIRS, indirect=True)
async def test_a_copy_that_was_interrupted_is_completed(places: tuple[Place, Place]) -> None:
    source, target = places
    source.backend.publish([draft("1", number) for number in range(1, 101)])
    source.backend.publish([draft("2", 1)])
    await copier(source, target).copy_round()
    source.backend.publish([draft("1", 101), draft("2", 2)])
    # As if it had been killed: another process begins, and knows nothing.
    again = copier(source, target)
    assert await again.copy_round() == 2
    assert await again.copy_round(thorough=True) == 0
    once_more = copier(source, target)
    assert await once_more.copy_round() == 0
    assert (await once_more.compare()).equal == 2


@pytest.mark.parametrize("places", PAIRS, indirect=True)
async def test_what_another_process_writes_to_the_target_is_not_overwritten(
    places: tuple[Place, Place],
) -> None:
    source, target = places
    source.backend.publish([draft("1", 1)])
    moving = copier(source, target)
    await moving.copy_round()
    target.backend.publish([draft("1", 1, "early")])
    source.backend.publish([draft("1", 2)])
    with pytest.raises(MigrationFailed, match="another process has written job:1 to TO"):
        await moving.copy_round()
    page = await target.backend.page("job:1", 0, 10)
    assert page.cursor is not None
    assert page.cursor.offset == 2


@pytest.mark.parametrize("places", PAIRS, indirect=True)
async def test_only_the_run_of_the_mark_stores_and_only_the_mark_that_was_read_is_replaced(
    places: tuple[Place, Place],
) -> None:
    source, target = places
    source.backend.publish([draft("1", 1)])
    copy, to = await read(source, "job:1"), target.transfer
    filled = Mark(Role.TARGET, "m", "redis://elsewhere", "now", "run")
    arrived = Mark(Role.ARRIVED, "m", "redis://elsewhere", "now")
    assert not await to.put(copy, UNKNOWN, whole=True, run="run")
    assert not await to.set_mark(filled, instead_of=arrived, is_closing_needed=False)
    assert await to.set_mark(filled, instead_of=None, is_closing_needed=False)
    assert not await to.set_mark(arrived, instead_of=None)
    assert await to.read_mark() == filled
    assert not await to.put(copy, UNKNOWN, whole=True, run="another")
    assert not await to.heads(["job:1"])
    assert await to.put(copy, UNKNOWN, whole=True, run="run")
    assert await to.set_mark(arrived, instead_of=filled)
    assert not await to.put(copy, copy.place, whole=True, run="run")
    assert await to.set_mark(None, instead_of=arrived)
    assert await to.read_mark() is None


@pytest.mark.parametrize(
    "places",
    [pytest.param(("nats", "valkey"), marks=pytest.mark.nats), ("redis", "valkey")],
    indirect=True,
)
async def test_a_closed_server_refuses_every_write_and_answers_reads(
    places: tuple[Place, Place],
) -> None:
    source, _ = places
    backend, transfer = source.backend, source.transfer
    backend.publish([draft("1", 1)])
    backend.hold("w", {"1": b"record"}, (), 0.05)
    closing = Mark(Role.SOURCE, "m", "nats://elsewhere", "now")
    await transfer.set_mark(closing)
    assert await transfer.read_mark() == closing
    writes: list[Callable[[], object]] = [
        lambda: backend.publish([draft("1", 2)]),
        lambda: backend.publish([draft("new", 1)]),
        lambda: backend.claim("job:1", "1", "token", "7"),
        lambda: backend.delete("job:1"),
        lambda: backend.lease("place", "w", 1, 5.0),
        lambda: backend.hold("w", {"2": b"record"}, (), 5.0),
        lambda: backend.overdue(5.0),
    ]
    for write in writes:
        # NATS names the reason from the next connection on.
        with pytest.raises(BackendUnavailable, match=r"closed|maximum bytes"):
            write()
    with pytest.raises(BackendUnavailable, match="nats://elsewhere"):
        backend.publish([draft("1", 2)])
    assert len((await backend.snapshot("job:1", None, 10)).events) == 1
    [warning] = [one for one in (await backend.status()).warnings if "closed for writing" in one]
    assert "nats://elsewhere" in warning
    await transfer.set_mark(None)
    assert await transfer.read_mark() is None
    assert backend.publish([draft("1", 2)])[0].outcome is Outcome.APPENDED


@pytest.mark.cluster
@pytest.mark.parametrize("places", [("cluster", "valkey")], indirect=True)
async def test_a_cluster_is_not_closed_without_a_word(places: tuple[Place, Place]) -> None:
    source, _ = places
    closing = Mark(Role.SOURCE, "m", "nats://elsewhere", "now")
    with pytest.raises(BackendRefused, match="--stopped"):
        await source.transfer.set_mark(closing)
    assert await source.transfer.read_mark() is None
    await source.transfer.set_mark(closing, is_closing_needed=False)
    assert await source.transfer.read_mark() == closing


@pytest.mark.parametrize("places", PAIRS, indirect=True)
async def test_jobs_that_a_process_holds_are_held_and_given_on_the_other_server(
    places: tuple[Place, Place],
) -> None:
    source, target = places
    source.backend.hold("alive", {"1": b"one"}, (), 30.0)
    source.backend.hold("dead", {"2": b"\x00two"}, (), 0.01)
    await asyncio.sleep(0.05)
    assert await copier(source, target).copy_holders(600.0) == 2
    assert target.backend.hold("alive", {}, (), 600.0)
    deadline = time.monotonic() + 10
    while not (given := target.backend.overdue(60.0)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    [holding] = given
    assert (holding.worker, dict(holding.jobs)) == ("dead", {"2": b"\x00two"})


@pytest.mark.nats
@pytest.mark.parametrize("places", [("valkey", "nats")], indirect=True)
async def test_rubbish_of_other_programs_is_left_out(
    places: tuple[Place, Place], server_url: Callable[[str], str]
) -> None:
    source, target = places
    for job in ("1", "2"):
        source.backend.publish([draft(job, number) for number in range(1, 11)])
    with redis.Redis.from_url(server_url("valkey")) as client:
        base = f"{source.prefix}:{{job:1}}:"
        # A damaged event, an entry and a state that no append has made.
        [entry] = client.xrange(base + "log", "5-0", "5-0")
        client.xdel(base + "log", "5-0")
        client.xadd(base + "log", {"rubbish": "x"}, "10-1")
        client.hset(base + "state", "rubbish", b"\xff\xfe")
        assert entry[0] == b"5-0"
        client.set(f"{source.prefix}:{{job:3}}:meta", "no hash")
        client.hset(f"{source.prefix}:{{job:4}}:meta", mapping={"epoch": "e", "offset": "x"})
        client.hset(f"{source.prefix}:{{no topic}}:meta", "epoch", "e")
    moving = copier(source, target)
    assert await moving.copy_round() == 2
    assert moving.counts.left_out == 4
    copy = await read(target, "job:1")
    assert [one.event.offset for one in copy.events] == list(range(6, 11))
    known = (await source.backend.tops(["job:1"]))["job:1"].cursor
    snapshot = await target.backend.snapshot("job:1", known, 0)
    assert (snapshot.reason, snapshot.events) == (None, [])
    assert set(await target.transfer.heads(["job:2", "job:3", "job:4"])) == {"job:2"}
    assert (await read(target, "job:2")).place not in (UNKNOWN, DELETED)


@pytest.mark.nats
@pytest.mark.parametrize("places", [("valkey", "nats")], indirect=True)
async def test_a_copier_that_is_killed_at_any_moment_leaves_what_the_next_one_completes(
    places: tuple[Place, Place],
) -> None:
    source, target = places
    for job in range(40):
        source.backend.publish([draft(str(job), number) for number in range(1, 61)])
    program = (
        "import asyncio, sys\n"
        "from semantik_realtime.cli.migrate import make_transfer\n"
        "from semantik_realtime.cli.migrate_copy import Copier, Side\n"
        "async def main():\n"
        "    sides = [Side('s', make_transfer(url)) for url in sys.argv[1:]]\n"
        "    for side in sides: await side.transfer.open()\n"
        "    copier = Copier(*sides, report=lambda n: print(n, flush=True))\n"
        "    while True: await copier.copy_round(thorough=True)\n"
        "asyncio.run(main())\n"
    )
    urls = [place.transfer.address for place in places]
    for stop_after in (1, 4):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, *urls), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(stop_after):
            await process.stdout.readline()
        process.kill()
        await process.wait()
    moving = copier(source, target)
    await moving.copy_round()
    comparison = await moving.compare()
    assert (comparison.equal, comparison.differences) == (40, 0)
