"""Several servers, one of which may hang: who answers first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol, TypeVar

from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.errors import BackendError, BackendRefused, BackendUnavailable
from semantik_realtime.urls import mask_urls

from semantik_realtime_nats.client import Message
from semantik_realtime_nats.connection import Connection
from semantik_realtime_nats.errors import explain

HEAD_START_SECONDS = 0.5
"""How long one server may take before the next one is asked beside it: one that hangs accepts
connections and says nothing, and no time of the others may be lost with it."""
ASK_AGAIN_SECONDS = 0.3
"""How long a server of a cluster may take to begin its answer to a read."""
READS_AT_ONCE = 4
"""Most requests for one read. One of three servers that hangs gets all of them once in 81 times."""


class OnConnection(Protocol):
    """What is opened on a server."""

    connection: Connection


Answer = TypeVar("Answer")
Opened = TypeVar("Opened", bound=OnConnection)


async def open_first(
    urls: Sequence[str], open_on: Callable[[str], Awaitable[Opened]], timeout_seconds: float
) -> Opened:
    """Return what is opened first; all others are closed.

    Args:
        urls: the servers, in the order in which they are asked. The next one is asked as soon as
            one has failed, or has not answered in `HEAD_START_SECONDS`.
        open_on: opens a connection to one server. It closes it again if it is cancelled.
        timeout_seconds: for all servers together.

    Raises:
        BackendUnavailable: no server answers.
        BackendRefused: a server answers and refuses, and no other one can be used.
    """
    left = list(reversed(urls))
    attempts: dict[asyncio.Future[Opened], str] = {}
    failures: list[BackendError] = []
    first: Opened | None = None
    try:
        async with asyncio.timeout(timeout_seconds):
            while first is None and (left or not all(attempt.done() for attempt in attempts)):
                if left:
                    url = left.pop()
                    attempts[asyncio.ensure_future(open_on(url))] = url
                pending = [attempt for attempt in attempts if not attempt.done()]
                done, _ = await asyncio.wait(
                    pending,
                    timeout=HEAD_START_SECONDS if left else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for attempt in (one for one in pending if one in done):
                    if (error := attempt.exception()) is None:
                        first = first or attempt.result()
                    else:
                        failures.append(_name_server(error, attempts[attempt]))
    except TimeoutError:
        failures.append(BackendUnavailable(f"no connection in {timeout_seconds:g} s"))
    finally:
        await _close_others(attempts, first)
    if first is not None:
        return first
    for failure in failures:
        if isinstance(failure, BackendRefused):
            raise failure
    raise BackendUnavailable("; ".join(map(str, failures)))


async def first_answer(ask: Callable[[list[Message]], Awaitable[Answer]]) -> Answer:
    """Ask a cluster, and ask again while no server has begun to answer; return the first answer.

    The cluster gives each read to one of its servers at random, also to one that hangs, until the
    others have noticed that, which takes them up to half a minute.

    Args:
        ask: sends the request; the list that it gets is filled with the parts of the answer.
            What it raises is raised.
    """
    asked: dict[asyncio.Future[Answer], list[Message]] = {}
    try:
        while True:
            # One that has begun to answer is slow, and does not hang.
            if len(asked) < READS_AT_ONCE and not any(asked.values()):
                parts: list[Message] = []
                asked[asyncio.ensure_future(ask(parts))] = parts
            done, _ = await asyncio.wait(
                asked, timeout=ASK_AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return done.pop().result()
    finally:
        await stop_tasks(asked)


async def _close_others(attempts: Collection[asyncio.Future[Opened]], first: Opened | None) -> None:
    await stop_tasks(attempts)
    for attempt in attempts:
        if attempt.done() and not attempt.cancelled() and attempt.exception() is None:
            if (opened := attempt.result()) is not first:
                await opened.connection.close()


def _name_server(error: BaseException, url: str) -> BackendError:
    failure = explain(error)
    return type(failure)(f"{failure} (server {mask_urls(url)})")
