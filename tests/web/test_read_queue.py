"""Reads take turns: few at once, fewer of one user, and no user waits behind another's crowd."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest
from waiting import until

from semantik_realtime.web import reads
from semantik_realtime.web.reads import (
    ANSWER_BYTES,
    ANSWER_BYTES_OF_USER,
    REQUESTS_OF_USER,
    REQUESTS_WAITING,
    Answers,
    Busy,
    ReadQueue,
)


class Readers:
    """Reads that run until the test ends them."""

    def __init__(self, queue: ReadQueue) -> None:
        self.queue = queue
        self.began: list[tuple[str | None, int]] = []
        """User and number of each read, in the order in which they began."""
        self.running: Counter[str | None] = Counter()
        self.tasks: dict[tuple[str | None, int], asyncio.Task[None]] = {}
        self._ends: dict[tuple[str | None, int], asyncio.Event] = {}

    def start(self, user: str | None, count: int) -> None:
        for number in range(count):
            key = user, number
            self._ends[key] = asyncio.Event()
            self.tasks[key] = asyncio.create_task(self._read(key))

    def end(self, user: str | None, number: int) -> None:
        self._ends[user, number].set()

    async def _read(self, key: tuple[str | None, int]) -> None:
        async with self.queue.turn(key[0]):
            self.began.append(key)
            self.running[key[0]] += 1
            await self._ends[key].wait()
            self.running[key[0]] -= 1


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_few_reads_run_at_once_and_fewer_of_one_user() -> None:
    readers = Readers(ReadQueue(at_once=4, of_user=2))
    readers.start("7", 5)
    await settle()
    assert readers.began == [("7", 0), ("7", 1)]
    for user in "89":
        readers.start(user, 3)
    await settle()
    assert +readers.running == {"7": 2, "8": 2}
    assert readers.queue.waiting == 3 + 1 + 3


async def test_users_that_wait_take_turns_and_each_ones_reads_keep_their_order() -> None:
    readers = Readers(ReadQueue(at_once=1, of_user=1))
    readers.start("7", 4)
    await settle()
    for user in "89":
        readers.start(user, 2)
    await settle()
    for _ in range(8):
        readers.end(*readers.began[-1])
        await settle()
    assert readers.began == [
        *(("7", 0), ("7", 1), ("8", 0), ("9", 0), ("7", 2), ("8", 1), ("9", 1), ("7", 3))
    ]
    assert readers.queue.waiting == 0


async def test_the_process_itself_may_use_every_turn_but_waits_like_a_user() -> None:
    readers = Readers(ReadQueue(at_once=3, of_user=1))
    readers.start(None, 5)
    await settle()
    assert len(readers.began) == 3
    readers.start("7", 1)
    await settle()
    for number in range(3):
        readers.end(None, number)
    await settle()
    assert readers.running["7"] == 1


async def test_a_read_that_is_cancelled_leaves_its_place_to_the_next_one() -> None:
    readers = Readers(ReadQueue(at_once=1, of_user=1))
    readers.start("7", 4)
    await settle()
    readers.tasks["7", 1].cancel()
    await settle()
    assert readers.queue.waiting == 2
    readers.tasks["7", 0].cancel()
    # Cancelled in the same moment in which its turn comes.
    readers.tasks["7", 2].cancel()
    await settle()
    assert readers.began == [("7", 0), ("7", 3)]
    readers.end("7", 3)
    await settle()
    async with asyncio.timeout(1), readers.queue.turn("8"):
        pass


async def test_a_request_waits_for_a_short_time_and_then_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reads, "REQUEST_SECONDS", 0.05)
    queue = ReadQueue(at_once=3, of_user=2)
    readers = Readers(queue)
    readers.start("7", 2)
    await settle()
    with pytest.raises(Busy) as refusal:
        async with queue.request_turn("7"):
            pass
    assert refusal.value.by == "user"
    async with queue.request_turn("8"):
        with pytest.raises(Busy) as refusal:
            async with queue.request_turn("9"):
                pass
        assert refusal.value.by == "server"
    assert queue.waiting == 0
    readers.end("7", 0)
    await settle()
    async with queue.request_turn("7"):
        pass


async def test_too_many_requests_that_wait_are_refused_at_once() -> None:
    queue = ReadQueue(at_once=1, of_user=1)
    readers = Readers(queue)
    readers.start(None, 1)
    await settle()

    async def request(user: str) -> None:
        async with queue.request_turn(user):
            pass

    tasks = []
    for user in range(REQUESTS_WAITING // REQUESTS_OF_USER):
        tasks += [asyncio.create_task(request(str(user))) for _ in range(REQUESTS_OF_USER)]
    await settle()
    with pytest.raises(Busy) as refusal:
        await request("0")
    assert refusal.value.by == "user"
    with pytest.raises(Busy) as refusal:
        await request("another")
    assert refusal.value.by == "server"
    readers.end(None, 0)
    await until(lambda: all(task.done() for task in tasks), 5)
    assert not any(task.exception() for task in tasks)
    await request("another")


def test_big_answers_have_room_of_a_user_and_of_the_process_and_one_always_has() -> None:
    answers = Answers()
    half = ANSWER_BYTES_OF_USER // 2
    with contextlib.ExitStack() as stack:
        stack.enter_context(answers.place("7", half))
        stack.enter_context(answers.place("7", half))
        with pytest.raises(Busy) as refusal, answers.place("7", 1):
            pass
        assert refusal.value.by == "user"
        stack.enter_context(answers.place("8", ANSWER_BYTES - 2 * half))
        with pytest.raises(Busy) as refusal, answers.place("9", 1):
            pass
        assert refusal.value.by == "server"
    assert answers.bytes == 0
    with answers.place("7", 2 * ANSWER_BYTES):
        pass
