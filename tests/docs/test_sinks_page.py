"""The examples of docs/sinks.md run as printed: database, mail and webhook."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine, text

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.core import sinks as rules
from semantik_realtime.sink_hooks import SinkEntry
from semantik_realtime.sinks import worker
from semantik_realtime.sinks.registry import SinkEvent

PAGE = (Path(__file__).parents[2] / "docs" / "sinks.md").read_text()
FILES = re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SECRET = b"a secret of the two"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a file of the page by its name."""
    for name, source in FILES:
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module
    for name, _ in FILES:
        sys.modules.pop(name, None)


@pytest.fixture
def realtime(monkeypatch: pytest.MonkeyPatch) -> Realtime:
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(rules, "FIRST_PAUSE_SECONDS", 0.02)
    return Realtime(Settings(backend="memory", jwt_secret="a secret of at least thirty-two bytes"))


@contextlib.asynccontextmanager
async def started(realtime: Realtime) -> AsyncIterator[None]:
    app = FastAPI()
    realtime.install(app)
    async with app.router.lifespan_context(app):
        await until(lambda: len(realtime.sink_backend.sink_status()) == len(realtime.sinks))
        yield


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def run_a_job(realtime: Realtime, job: str) -> None:
    for type in ("job_started", "job_progress", "job_completed"):
        await realtime.publish(f"job:{job}", type, owner="ada", state={"kind": "import"})


def handled(realtime: Realtime) -> int:
    return sum(one.handled for one in realtime.sink_backend.sink_status())


def test_the_page_has_its_four_files() -> None:
    assert [name for name, _ in FILES] == ["database", "mail", "webhook", "receiver"]


async def test_the_database_has_the_last_state_and_repeats_change_nothing(
    realtime: Realtime, module: Callable[[str], Any], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    store = module("database").add_sink(realtime, url)
    events: list[Any] = []
    realtime.sink(name="recorder")(events.append)
    async with started(realtime):
        await run_a_job(realtime, "1")
        await until(lambda: handled(realtime) == 6)
        # Every event once more, the oldest last.
        for event in sorted(events, key=lambda event: -event.offset):
            store(event)
    engine = create_engine(url)
    with engine.connect() as connection:
        [row] = connection.execute(text("select id, status, offset from jobs")).all()
        identities = connection.execute(text("select identity from handled_events")).all()
    engine.dispose()
    assert tuple(row) == ("1", "completed", 3)
    assert {identity for (identity,) in identities} == {event.identity for event in events}
    assert len(identities) == 3


async def test_an_older_epoch_does_not_overwrite_a_newer_one(
    realtime: Realtime, module: Callable[[str], Any], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    store = module("database").add_sink(realtime, url)

    def event(identity: str, epoch: str, offset: int, second: int, status: str) -> Any:
        head = {"offset": offset, "type": "note", "key": "1", "state": {"status": status}}
        json = msgspec.json.encode({**head, "time": f"2026-01-01T00:00:{second:02}.000Z"})
        return SinkEvent.of(
            SinkEntry(id="", identity=identity, topic="job:1", epoch=epoch, owner=None, json=json)
        )

    engine = create_engine(url)
    try:
        for given, expected in (
            (event("a", "old", 5, 5, "running"), "running"),
            (event("b", "new", 1, 7, "completed"), "completed"),
            (event("c", "old", 6, 6, "running"), "completed"),
            (event("d", "new", 2, 6, "failed"), "failed"),
        ):
            store(given)
            with engine.connect() as connection:
                [row] = connection.execute(text("select status from jobs")).all()
            assert tuple(row) == (expected,), given
    finally:
        engine.dispose()


@contextlib.asynccontextmanager
async def mail_server(refuses: int) -> AsyncIterator[tuple[int, list[str]]]:
    """A server that takes mails, after it has refused some."""
    mails: list[str] = []
    left = [refuses]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        while line := (await reader.readline()).decode():
            command = line[:4].upper()
            if command == "DATA":
                writer.write(b"354 go on\r\n")
                mail = (await reader.readuntil(b"\r\n.\r\n")).decode()
                if left[0]:
                    left[0] -= 1
                    writer.write(b"451 not now\r\n")
                    continue
                mails.append(mail)
            writer.write(b"221 bye\r\n" if command == "QUIT" else b"250 ok\r\n")
            if command == "QUIT":
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], mails


async def test_one_mail_is_sent_at_the_end_after_the_mail_server_is_back(
    realtime: Realtime, module: Callable[[str], Any]
) -> None:
    async with mail_server(refuses=2) as (port, mails):
        module("mail").add_sink(realtime, "127.0.0.1", port, lambda user: f"{user}@example.org")
        async with started(realtime):
            await run_a_job(realtime, "1")
            await until(lambda: handled(realtime) == 1)
        assert realtime.sink_runner.outcomes["retried"] == 2
    [mail] = mails
    assert "To: ada@example.org" in mail
    assert "Subject: Your job 1: completed" in mail
    assert re.search(r"^Message-ID: <[0-9a-f]{64}@example.org>\r$", mail, re.MULTILINE)


@contextlib.asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await running


async def test_the_receiver_gets_the_signed_call_and_refuses_others(
    realtime: Realtime, module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    received: dict[str, Any] = {}
    webhook = module("webhook")
    receiver = module("receiver").make_receiver(SECRET, received)
    async with serving(receiver) as url:
        webhook.add_sink(realtime, f"{url}/hook", SECRET)
        async with started(realtime):
            await run_a_job(realtime, "1")
            await until(lambda: handled(realtime) == 1)
        [event] = received.values()
        assert (event["type"], event["job"]) == ("job_completed", "1")
        assert event["state"]["status"] == "completed"
        assert event["id"].startswith("job:1/")

        body = b'{"id": "x"}'
        now = str(int(webhook.time.time()))
        old = str(int(now) - 301)
        async with httpx.AsyncClient(base_url=url) as client:

            async def call(timestamp: str, signature: str, content: bytes = body) -> int:
                headers = {"X-Timestamp": timestamp, "X-Signature": signature}
                return (await client.post("/hook", content=content, headers=headers)).status_code

            assert await call(now, webhook.sign(b"another", now, body)) == 401
            assert await call(now, webhook.sign(SECRET, now, body), b'{"id": "y"}') == 401
            assert await call(old, webhook.sign(SECRET, now, body)) == 401
            assert await call(old, webhook.sign(SECRET, old, body)) == 401
            assert await call("", "") == 401
            assert len(received) == 1
            assert await call(now, webhook.sign(SECRET, now, body)) == 200


async def test_a_receiver_that_refuses_gets_the_call_again(
    realtime: Realtime, module: Callable[[str], Any]
) -> None:
    received: dict[str, Any] = {}
    receiver = module("receiver").make_receiver(SECRET, received)
    failures = [2]

    @receiver.middleware("http")
    async def fail(request: Any, call_next: Any) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise RuntimeError("not now")
        return await call_next(request)

    async with serving(receiver) as url:
        module("webhook").add_sink(realtime, f"{url}/hook", SECRET)
        async with started(realtime):
            await run_a_job(realtime, "1")
            await until(lambda: handled(realtime) == 1)
    assert len(received) == 1
