"""Several servers, of which one accepts connections and says nothing."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest
from semantik_realtime.errors import BackendRefused, BackendUnavailable
from semantik_realtime.testing.contract import Author

from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.client import Message
from semantik_realtime_nats.servers import READS_AT_ONCE, first_answer, open_first

Make = Callable[..., NatsBackend]


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"nats://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_silent_server_takes_no_time_of_the_others(
    url: str, silent: str, make_backend: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent_first(urls: Sequence[str], k: int) -> list[str]:
        return sorted(urls, key=lambda one: one != silent)

    monkeypatch.setattr(random, "sample", silent_first)
    backend = make_backend(f"{url},{silent}", timeout_seconds=2)
    for _ in range(3):
        await asyncio.to_thread(backend.publish, [Author().draft(f"job:{secrets.token_hex(6)}")])
        await asyncio.to_thread(backend.close_writer)
    await backend.open()
    assert (await backend.status()).reachable


class Opened:
    """What is opened on a server, and its connection in one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_closed = False
        self.connection: Opened = self

    async def close(self) -> None:
        self.is_closed = True


async def test_of_two_that_answer_at_once_the_second_is_closed() -> None:
    answer, opened = asyncio.Event(), []

    async def open_on(url: str) -> Opened:
        await answer.wait()
        opened.append(Opened(url))
        return opened[-1]

    first = asyncio.create_task(open_first(["a", "b"], open_on, 10))
    await asyncio.sleep(0.7)
    answer.set()
    assert (await first).url == "a"
    assert [(one.url, one.is_closed) for one in opened] == [("a", False), ("b", True)]


async def test_without_an_answer_a_refusal_is_raised_and_says_which_server() -> None:
    async def refuse(url: str) -> Opened:
        if url == "nats://b":
            raise BackendRefused("no")
        raise OSError(f"away {url}")

    with pytest.raises(BackendRefused, match=r"no \(server nats://b\)"):
        await open_first(["nats://a", "nats://b"], refuse, 10)
    with pytest.raises(BackendUnavailable, match=r"a \(server nats://a\); .*c \(server nats://c\)"):
        await open_first(["nats://a", "nats://c"], refuse, 10)


async def test_a_read_that_a_hanging_server_got_is_asked_again() -> None:
    asked = []

    async def ask(parts: list[Message]) -> int:
        number = len(asked)
        asked.append(parts)
        if number < READS_AT_ONCE - 1:
            await asyncio.Event().wait()
        return number

    assert await first_answer(ask) == READS_AT_ONCE - 1


async def test_a_read_whose_answer_has_begun_is_not_asked_again() -> None:
    asked = []

    async def ask(parts: list[Message]) -> int:
        asked.append(parts)
        parts.append(Message(b"subject", b"", None))
        await asyncio.sleep(1)
        return 1

    assert await first_answer(ask) == 1
    assert len(asked) == 1
