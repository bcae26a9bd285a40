"""How a backend behaves in a process that is not its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

from semantik_realtime.core.event import Outcome
from semantik_realtime.testing.contract.actors import Author, Recorder
from semantik_realtime.testing.contract.fixtures import Fixtures


class Guest(Fixtures):
    """How a backend behaves in a process that is not its own."""

    async def test_open_and_close_may_be_repeated(
        self, make_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = make_backend()
        author = Author()
        for _ in range(2):
            await backend.open()
            await backend.open()
            sink = Recorder()
            await backend.subscribe(topic, sink)
            backend.publish([author.draft(topic)])
            await sink.heard(1)
            await backend.close()
            await backend.close()
        backend.close_writer()

    async def test_what_was_opened_on_a_loop_that_is_gone_can_be_opened_again(
        self, make_backend: Callable[..., Any], topic: str
    ) -> None:
        backend, sink = make_backend(), Recorder()
        # As test clients do: the loop ends, and nobody closes anything.
        await asyncio.to_thread(asyncio.run, backend.open())
        await backend.open()
        await backend.subscribe(topic, sink)
        backend.publish([Author().draft(topic)])
        await sink.heard(1)
        await backend.close()
        backend.close_writer()

    async def test_writing_needs_no_open_and_survives_close_writer(
        self, make_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = make_backend()
        author = Author()
        for _ in range(2):
            assert backend.publish([author.draft(topic)])[0].outcome is Outcome.APPENDED
            backend.close_writer()
            backend.close_writer()

    async def test_a_forked_child_writes_on_its_own_and_its_parent_goes_on(
        self, backend: Any, topic: str
    ) -> None:
        if not self.shares_storage:
            return

        def write(author: Author) -> bool:
            return all(
                backend.publish([author.draft(topic)])[0].outcome is Outcome.APPENDED
                for _ in range(50)
            )

        assert write(Author())
        child = os.fork()
        if child == 0:
            # Whatever happens: the child must never come back into the test.
            with contextlib.suppress(BaseException):
                backend.close_writer()
                done = write(Author())
                backend.close_writer()
                os._exit(0 if done else 1)
            os._exit(2)
        assert write(Author())
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert (await backend.tops([topic]))[topic].cursor.offset == 150 or not self.dense_offsets

    async def test_the_status_names_the_backend(self, backend: Any) -> None:
        status = await backend.status()
        assert status.reachable
        assert status.backend
