"""Logs of large events: what readers cost, and what other users notice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest
from clients import NativeClient, SseClient
from configuration import make_settings, token
from publisher import Publisher, one_draft
from waiting import until
from web_servers import InProcessServer, ServerProcess, serve_realtime, server_processes

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor
from semantik_realtime.hookspecs import Page, Snapshot, hookimpl
from semantik_realtime.testing.contract import Author
from semantik_realtime.web.endpoints import answers
from semantik_realtime.web.hub import hub
from semantik_realtime.web.reads import READS_AT_ONCE

EVENT_BYTES = 60_000
EVENTS = 400
LOG_BYTES = EVENTS * EVENT_BYTES
"""24 MB."""
MAY_GROW = LOG_BYTES
"""By how much the server's memory may grow. Without bounds each reader took several times this."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def peak_bytes(server: ServerProcess) -> int:
    """Return the most memory that the server has had since `forget_peak`."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def forget_peak(server: ServerProcess) -> None:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


@contextlib.asynccontextmanager
async def no_outage(server: ServerProcess) -> AsyncIterator[None]:
    """Check that the block costs little memory, and that another user notices nothing."""
    async with NativeClient(server, "job:small", user="8") as watcher:
        await watcher.wait_synced()
        forget_peak(server)
        before = peak_bytes(server)
        yield
        assert peak_bytes(server) - before < MAY_GROW
        assert watcher.ops("degraded") == []
        async with server.http_client("8") as http:
            assert (await http.get("/realtime/jobs/small")).status_code == 200
            assert (await http.get("/realtime/health")).json()["degraded_since"] is None


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[ServerProcess]:
    """A server process with a large log of user 7 and a job of user 8."""
    backend, author = load_backend(settings), Author()
    text = "x" * (EVENT_BYTES - 100)
    for start in range(0, EVENTS, 20):
        numbers = range(start, start + 20)
        backend.publish(
            [
                author.draft("job:big", "log", data={"i": n, "text": text}, owner="7")
                for n in numbers
            ]
        )
    backend.publish([author.draft("job:small", state={"status": "running"}, owner="8")])
    backend.close_writer()
    async with server_processes(1, settings) as [made]:
        yield made


async def test_many_requests_for_one_event_of_a_large_log_read_no_more_than_that(
    server: ServerProcess,
) -> None:
    async with no_outage(server), server.http_client("7") as http:
        replies = await asyncio.gather(
            *(http.get("/realtime/jobs/big/history?limit=1") for _ in range(12))
        )
    assert {reply.status_code for reply in replies} == {200}
    assert {len(reply.json()["events"]) for reply in replies} == {1}


async def test_a_reader_pages_through_a_large_log_without_loss_or_repetition(
    server: ServerProcess,
) -> None:
    seen, after = [], 0
    async with no_outage(server), server.http_client("7") as http:
        while True:
            reply = await http.get(f"/realtime/jobs/big/history?limit=1000&after={after}")
            assert reply.status_code == 200
            assert len(reply.content) < 2**20 + 1000
            page = reply.json()
            seen += [event["data"]["i"] for event in page["events"]]
            assert page["next"] == page["events"][-1]["offset"]
            after = page["next"]
            if not page["more"]:
                break
    assert seen == list(range(EVENTS))


async def test_streams_that_nobody_reads_cost_little_memory(server: ServerProcess) -> None:
    sockets = []
    async with no_outage(server):
        for _ in range(8):
            link = socket.socket()
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.connect(("127.0.0.1", server.port))
            path = f"/realtime/jobs/big/events?history=1000&token={token('7')}"
            link.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            sockets.append(link)
        for link in sockets:
            await until(lambda link=link: b"sync" in link.recv(4096, socket.MSG_PEEK), 10)
        await asyncio.sleep(0.5)
    for link in sockets:
        link.close()


async def test_sockets_that_nobody_reads_cost_little_memory(server: ServerProcess) -> None:
    clients = []
    async with no_outage(server):
        for _ in range(8):
            client = NativeClient(server, "job:big", history=1000, compression=None)
            await client.open()
            assert client.socket is not None
            await client.wait_for("welcome")
            client.socket.transport.pause_reading()
            clients.append(client)
        async with server.http_client("7") as http, asyncio.timeout(10):
            # The small job's and the large one's: the clients have subscribed.
            while (await http.get("/realtime/health")).json()["topics"] < 2:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1)
    for client in clients:
        await client.abort()


async def test_the_history_of_a_stream_is_the_newest_part_that_fits(
    server: ServerProcess,
) -> None:
    async with SseClient(server, "job:big", history=1000) as stream:
        await stream.wait_synced()
    numbers = [event["data"]["i"] for event in stream.history["job:big"]]
    assert numbers == list(range(EVENTS - len(numbers), EVENTS))
    assert 2**20 - 2 * EVENT_BYTES < len(numbers) * EVENT_BYTES <= 2**20


async def test_a_client_far_behind_in_bytes_gets_the_states_instead(server: ServerProcess) -> None:
    async with server.http_client("7") as http:
        first = (await http.get("/realtime/jobs/big/history?limit=1")).json()
        top = (await http.get("/realtime/jobs/big")).json()["cursor"]
    client = NativeClient(server, "job:big")
    epoch = first["epoch"]
    client.views["job:big"].cursor = f"{epoch}.0.00000000"
    async with client:
        await client.wait_synced()
    [sync] = client.syncs
    assert (sync["mode"], sync["reason"], sync["cursor"]) == ("snapshot", "too_far", top)


async def test_a_client_with_many_large_topics_gets_all_of_them(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    topics = [f"job:{n}" for n in range(40)]
    for topic in topics:
        for _ in range(20):
            draft = one_draft(topic, "log", key=topic, data={"text": "x" * 50_000}, owner="7")
            publisher.rt.emitter.emit(draft)
        await publisher.flush()
    async with NativeClient(web_server, *topics, history=1000) as client:
        # In all 40 MB, which is more than may wait for a connection.
        await client.wait_synced()
        assert client.closed is None
        assert {len(client.history[topic]) for topic in topics} == {20}


class SlowBackend(MemoryBackend):
    """Does not answer reads of `job:slow` while its gate is closed."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.gate = asyncio.Event()
        self.reads = 0

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        await self._wait(topic)
        return await super().snapshot(topic, after, history)

    @hookimpl
    async def page(self, topic: str, after: int, limit: int) -> Page:
        await self._wait(topic)
        return await super().page(topic, after, limit)

    async def _wait(self, topic: str) -> None:
        if topic == "job:slow":
            self.reads += 1
            await self.gate.wait()


async def test_a_read_that_takes_too_long_is_no_outage_and_a_subscription_waits_for_it() -> None:
    settings = make_settings("memory://", backend="memory", timeout_seconds=0.3)
    backend = SlowBackend(settings)
    async with serve_realtime(settings, backend=backend) as web_server:
        author = Author()
        for name, owner in (("slow", "7"), ("small", "8")):
            backend.publish([author.draft(f"job:{name}", state={"status": "x"}, owner=owner)])
        async with (
            NativeClient(web_server, "job:small", user="8") as watcher,
            NativeClient(web_server, "job:slow", user="7") as waiting,
            web_server.http_client("7") as http,
        ):
            await watcher.wait_synced()
            for path in ("/realtime/jobs/slow", "/realtime/jobs/slow/history"):
                refused = await http.get(path)
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"
            assert backend.reads > 2
            assert web_server.rt.web.hub.failed_reads >= 2
            assert not web_server.rt.backend.is_away
            backend.publish([author.draft("job:small", state={"status": "y"})])
            await watcher.wait_for_offset("job:small", 2)
            assert watcher.ops("degraded") == []
            assert not waiting.views["job:slow"].synced
            backend.gate.set()
            await waiting.wait_synced()
        assert waiting.ops("degraded") == []


async def test_a_page_that_has_the_present_state_is_told_so_without_reading_it() -> None:
    settings = make_settings("memory://", backend="memory")
    backend, author = SlowBackend(settings), Author()
    backend.gate.set()
    async with serve_realtime(settings, backend=backend) as web_server:
        backend.publish([author.draft("job:slow", state={"status": "x"}, owner="7")])
        async with web_server.http_client("7") as http:
            etag = (await http.get("/realtime/jobs/slow")).headers["etag"]
            for _ in range(3):
                again = await http.get("/realtime/jobs/slow", headers={"If-None-Match": etag})
                assert (again.status_code, again.headers["etag"]) == (304, etag)
            assert backend.reads == 1
            backend.publish([author.draft("job:slow", state={"status": "y"})])
            changed = await http.get("/realtime/jobs/slow", headers={"If-None-Match": etag})
        assert changed.json()["offset"] == 2


async def test_the_ends_of_many_topics_are_asked_for_in_parts(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TOPS_AT_ONCE", 3)
    topics = [f"job:{number}" for number in range(7)]
    for topic in topics:
        await publisher.publish(topic, 1)
    async with NativeClient(web_server, *topics) as client:
        await client.wait_synced()
        for topic in topics:
            await web_server.rt.backend.unsubscribe(topic)
            await publisher.publish(topic, 1)
        await web_server.rt.web.hub.check_tops()
        for topic in topics:
            await client.wait_for_offset(topic, 2)


async def test_slow_reads_of_one_user_delay_no_other_user() -> None:
    settings = make_settings("memory://", backend="memory", timeout_seconds=30)
    backend = SlowBackend(settings)
    async with serve_realtime(settings, backend=backend) as web_server:
        author = Author()
        for name, owner in (("slow", "7"), ("small", "8")):
            backend.publish([author.draft(f"job:{name}", state={"status": "x"}, owner=owner)])
        async with web_server.http_client("7") as http:
            requests: list[Awaitable[object]] = [
                asyncio.ensure_future(http.get("/realtime/jobs/slow/history"))
                for _ in range(3 * READS_AT_ONCE)
            ]
            await until(lambda: backend.reads == 2)
            async with web_server.http_client("8") as other:
                reply = await asyncio.wait_for(other.get("/realtime/jobs/small/history"), 5)
            assert reply.status_code == 200
            # Those that cannot wait are refused as the user's own fault.
            done, _ = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            assert {task.result().status_code for task in done} == {429}
            assert {task.result().headers["retry-after"] for task in done} == {"1"}
            backend.gate.set()
            replies = await asyncio.gather(*requests)
            assert {reply.status_code for reply in replies} == {200, 429}
        busy = sum(reply.status_code == 429 for reply in replies)
        assert web_server.rt.web.hub.stats.busy == {"user": busy, "server": 0}


async def test_an_answer_that_nobody_reads_is_dropped_after_a_while(
    web_server: InProcessServer,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(answers, "SEND_SECONDS", 0.5)
    monkeypatch.setattr(answers, "SEND_BYTES_PER_SECOND", 2**30)
    caplog.set_level("INFO", logger="semantik_realtime")
    # More than the kernel's buffers take.
    state = {"status": "running", "fields": {"text": "x" * 60_000}}
    for number in range(400):
        publisher.emit("job:1", key=f"child-{number}", state=state)
    await publisher.flush()
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.setblocking(False)
    await asyncio.get_running_loop().sock_connect(link, ("127.0.0.1", web_server.port))
    head = f"GET /realtime/jobs/1?token={token('7')} HTTP/1.1\r\nHost: test\r\n"
    await asyncio.get_running_loop().sock_sendall(link, f"{head}\r\n".encode())
    await until(lambda: "rest: answer not read" in caplog.text, 20)
    assert web_server.rt.web.answers._sending.total() == 0
    link.close()
