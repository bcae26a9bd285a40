"""The command ``migrate``: what it refuses, and what an interruption leaves."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from commandline import COMMAND, obey_signals, run

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.cli import migrate
from semantik_realtime.cli.migrate import Migration, Options, make_transfer, run_migrate
from semantik_realtime.cli.migrate_copy import AT_ONCE, Copier, MigrationFailed, Side
from semantik_realtime.config import Settings
from semantik_realtime.core.copying import Role
from semantik_realtime.core.event import Draft, Outcome, encode_body
from semantik_realtime.core.sinks import Fate, Settlement, SinkFilter
from semantik_realtime.errors import BackendUnavailable, ConfigError
from semantik_realtime.hookspecs import Backend
from semantik_realtime.testing.servers import RedisServer, running, valkey_program

PREFIX = "moving"


class Servers(NamedTuple):
    """Two servers, and a writer to each."""

    source: RedisServer
    target: RedisServer
    before: Backend
    after: Backend

    @property
    def urls(self) -> tuple[str, str]:
        return self.source.url, self.target.url


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[RedisServer, RedisServer]]:
    with (
        running(RedisServer(valkey_program())) as source,
        running(RedisServer(valkey_program())) as target,
    ):
        yield source, target


@pytest.fixture
def servers(
    started: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Servers]:
    import redis

    monkeypatch.setenv("SEMANTIK_REALTIME_PREFIX", PREFIX)
    for server in started:
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
    source, target = started
    backends = [load_backend(Settings(backend="redis", url=server.url)) for server in started]
    yield Servers(source, target, *backends)
    for backend in backends:
        backend.close_writer()


def write(backend: Backend, job: str, *numbers: int) -> list[Outcome]:
    drafts = [
        Draft(
            topic=f"job:{job}",
            type="step",
            key=job,
            body=encode_body("step", "", job),
            producer="p",
            number=number,
        )
        for number in numbers
    ]
    return [receipt.outcome for receipt in backend.publish(drafts)]


def options(**given: bool) -> Options:
    return Options(**given)._replace(as_json=True)


@pytest.mark.parametrize(
    ("source", "target", "fault"),
    [
        ("memory://", "redis://localhost", "the memory backend end with its process"),
        ("localhost:6379", "redis://localhost", "cannot be moved from or to"),
        ("redis://user:secret@h", "ftp://user:secret@h", "cannot be moved from or to ftp://"),
        ("redis://localhost/0", "redis://localhost/0", "the same server"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(
    source: str, target: str, fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        run_migrate(source, target, Options())
    assert "secret" not in str(caught.value)


def test_a_server_that_is_away_ends_the_command_with_a_sentence(servers: Servers) -> None:
    done = run("migrate", "redis://127.0.0.1:1", servers.target.url, "--once")
    assert done.returncode == 1
    assert done.stderr.startswith("semantik-realtime: FROM: ")
    assert "Traceback" not in done.stderr


def test_a_server_that_hangs_ends_the_command_in_time(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMANTIK_REALTIME_TIMEOUT_SECONDS", "0.3")
    monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(migrate, "ROUND_SECONDS", 0.1)
    write(servers.before, "1", 1)
    servers.target.pause()
    try:
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="TO: "):
            run_migrate(*servers.urls, options(once=True))
        assert time.monotonic() - began < 15
    finally:
        servers.target.resume()


def test_a_target_with_topics_of_its_own_is_refused(servers: Servers) -> None:
    write(servers.before, "1", 1)
    write(servers.after, "2", 1)
    with pytest.raises(MigrationFailed, match="TO has topics already"):
        run_migrate(*servers.urls, Options(once=True))
    assert write(servers.after, "2", 2) == [Outcome.APPENDED]


def test_once_copies_and_compares_and_a_target_waits_until_it_is_complete(
    servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    write(servers.before, "1", 1, 2)
    assert run_migrate(*servers.urls, options(once=True)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {
        **{"topics": 1, "events": 2, "left_out": 0, "equal": 1, "changing": 0},
        **{"differences": 0, "different": []},
    }
    with pytest.raises(BackendUnavailable, match="topics are being moved to it"):
        write(servers.after, "1", 3)
    assert write(servers.before, "1", 3) == [Outcome.APPENDED]


def test_the_switch_closes_one_server_and_opens_the_other_and_the_way_back_does_the_same(
    servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    write(servers.before, "1", 1, 2)
    assert run_migrate(*servers.urls, options(switch=True)) == 0
    assert json.loads(capsys.readouterr().out)["equal"] == 1
    with pytest.raises(BackendUnavailable, match="restart this process"):
        write(servers.before, "1", 3)
    assert write(servers.after, "1", 2, 3) == [Outcome.DUPLICATE, Outcome.APPENDED]
    with pytest.raises(MigrationFailed, match="complete"):
        run_migrate(*servers.urls, options(switch=True))
    with pytest.raises(MigrationFailed, match="move them back"):
        run_migrate(*servers.urls, options(reopen=True))

    assert run_migrate(*reversed(servers.urls), options(switch=True)) == 0
    with pytest.raises(BackendUnavailable):
        write(servers.after, "1", 4)
    assert write(servers.before, "1", 3, 4) == [Outcome.DUPLICATE, Outcome.APPENDED]


@pytest.mark.parametrize("then", ["switch", "reopen"])
def test_a_switch_that_was_interrupted_is_finished_or_undone(
    servers: Servers, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(servers.before, "1", 1, 2)

    async def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("semantik_realtime.cli.migrate_copy.Copier.copy_holders", interrupted)
        assert run_migrate(*servers.urls, options(switch=True)) == 130
    for backend in (servers.before, servers.after):
        with pytest.raises(BackendUnavailable):
            write(backend, "1", 3)
    with pytest.raises(MigrationFailed, match="--switch, or --reopen"):
        run_migrate(*servers.urls, options(once=True))
    assert run_migrate(*servers.urls, options(**{then: True})) == 0
    open_one, closed = servers.after, servers.before
    if then == "reopen":
        open_one, closed = closed, open_one
    assert write(open_one, "1", 2, 3) == [Outcome.DUPLICATE, Outcome.APPENDED]
    with pytest.raises(BackendUnavailable):
        write(closed, "1", 3)


def test_it_follows_until_ctrl_c_and_survives_an_outage(servers: Servers) -> None:
    write(servers.before, "1", 1)
    process = subprocess.Popen(
        [*COMMAND, "migrate", *servers.urls],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=obey_signals,
    )

    async def follows(offset: int) -> None:
        side = Side("TO", make_transfer(servers.target.url))
        try:
            deadline = time.monotonic() + 30
            while True:
                heads = await side.transfer.heads(["job:1"])
                if heads and heads["job:1"].place.split(".")[1] == str(offset):
                    return
                assert time.monotonic() < deadline, (heads, process.poll())
                await asyncio.sleep(0.05)
        finally:
            await side.transfer.close()

    try:
        asyncio.run(follows(1))
        write(servers.before, "1", 2)
        asyncio.run(follows(2))
        servers.source.kill()
        time.sleep(1.2)
        servers.source.start()
        write(servers.before, "1", 3)
        asyncio.run(follows(3))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0, output
        assert "nothing was changed on FROM" in output
        assert "trying again" in output
    finally:
        process.kill()
        process.wait()


def test_events_that_wait_for_sinks_are_named_and_can_still_be_handled(
    servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    before: Any = servers.before
    wanted = SinkFilter.of(None, "*").encode()
    before.sink_open("mail", wanted, 100, 0.0)
    write(servers.before, "1", 1, 2)
    assert run_migrate(*servers.urls, options(switch=True)) == 0
    assert "the sink mail has 2 events in its queue on FROM" in capsys.readouterr().err
    taken = before.sink_take("mail", wanted, 10, 60.0)
    assert len(taken) == 2
    done = [Settlement(one.id, one.attempt, Fate.HANDLED) for one in taken]
    assert before.sink_settle("mail", done) == 2


def test_modes_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--once and --switch"):
        run_migrate("redis://a", "redis://b", Options(once=True, switch=True))


def test_of_many_topics_few_are_in_memory(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for begin in range(0, 300, 100):
        for job in range(begin, begin + 100):
            write(servers.before, str(job), 1, 2)
    copy = Copier._copy
    running = most = copied = 0

    async def watched(self: Copier, *given: Any) -> bool:
        nonlocal running, most, copied
        running, copied = running + 1, copied + 1
        most = max(most, running)
        try:
            return await copy(self, *given)
        finally:
            running -= 1

    monkeypatch.setattr(Copier, "_copy", watched)
    assert run_migrate(*servers.urls, options(once=True)) == 0
    assert copied == 300
    assert 1 < most <= AT_ONCE


def in_another_terminal(*given: Any) -> None:
    """Run the command in a thread until it has succeeded."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_migrate, *given).result(60) == 0


@pytest.mark.parametrize("mode", ["once", "switch"])
@pytest.mark.parametrize("at", ["_copy_round", "_put"])
def test_a_run_that_another_one_has_overtaken_overwrites_nothing(
    servers: Servers, mode: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(servers.before, "1", 1, 2)
    found = getattr(Copier, at)

    async def overtaken(self: Copier, *given: Any, **named: Any) -> Any:
        monkeypatch.setattr(Copier, at, found)
        in_another_terminal(*servers.urls, options(switch=True))
        assert write(servers.after, "1", 3) == [Outcome.APPENDED]
        return await found(self, *given, **named)

    monkeypatch.setattr(Copier, at, overtaken)
    with pytest.raises(MigrationFailed, match="another migrate has opened TO"):
        run_migrate(*servers.urls, options(**{mode: True}))
    assert write(servers.after, "1", 3, 4) == [Outcome.DUPLICATE, Outcome.APPENDED]


def test_a_run_that_follows_ends_with_a_sentence_when_another_one_switches(
    servers: Servers,
) -> None:
    write(servers.before, "1", 1)
    process = subprocess.Popen(
        [*COMMAND, "migrate", *servers.urls],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=obey_signals,
    )
    try:
        assert process.stdout is not None
        while "TO follows FROM" not in (line := process.stdout.readline()):
            assert line
        assert run_migrate(*servers.urls, options(switch=True)) == 0
        assert write(servers.after, "1", 2) == [Outcome.APPENDED]
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "another migrate has" in output
    assert "Traceback" not in output
    assert write(servers.after, "1", 2) == [Outcome.DUPLICATE]


@pytest.mark.parametrize("at", ["copy_holders", "set_mark"])
def test_from_is_opened_again_beside_a_switch_and_then_to_stays_closed(
    servers: Servers, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(servers.before, "1", 1, 2)
    owner = Side if at == "set_mark" else Copier
    found = getattr(owner, at)

    async def beside(self: Any, *given: Any, **named: Any) -> Any:
        if at == "set_mark" and given[0].role is not Role.ARRIVED:
            return await found(self, *given, **named)
        result = None if at == "set_mark" else await found(self, *given, **named)
        monkeypatch.setattr(owner, at, found)
        in_another_terminal(*servers.urls, options(reopen=True))
        return await found(self, *given, **named) if at == "set_mark" else result

    monkeypatch.setattr(owner, at, beside)
    with pytest.raises(MigrationFailed, match="another migrate has marked"):
        run_migrate(*servers.urls, options(switch=True))
    assert write(servers.before, "1", 3) == [Outcome.APPENDED]
    with pytest.raises(BackendUnavailable):
        write(servers.after, "1", 3)
    assert run_migrate(*servers.urls, options(switch=True)) == 0
    assert write(servers.after, "1", 3, 4) == [Outcome.DUPLICATE, Outcome.APPENDED]


@pytest.mark.parametrize("other", ["migrate", "process"])
def test_an_empty_target_is_filled_by_one_of_those_that_begin_together(
    servers: Servers, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(servers.before, "1", 1)
    check = Migration._check

    def meanwhile(self: Migration, *given: Any, **named: Any) -> None:
        monkeypatch.setattr(Migration, "_check", check)
        check(self, *given, **named)
        if other == "process":
            write(servers.after, "2", 1)
        else:
            second = f"{servers.source.url.rpartition('/')[0]}/1"
            in_another_terminal(second, servers.target.url, options(once=True))

    monkeypatch.setattr(Migration, "_check", meanwhile)
    with pytest.raises(MigrationFailed, match="meanwhile"):
        run_migrate(*servers.urls, options(once=True))
    if other == "process":
        assert write(servers.after, "2", 2) == [Outcome.APPENDED]
