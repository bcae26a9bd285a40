"""A backend shares its process with an application: loops, threads and forks."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

from semantik_realtime.core.event import Outcome
from semantik_realtime.testing.contract.actors import Author, Recorder
from semantik_realtime.testing.contract.fixtures import Fixtures


class Process(Fixtures):
    """A backend shares its process with an application: loops, threads and forks."""

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
            await sink.wait_for_events(1)
            await backend.close()
            await backend.close()
        backend.close_writer()

    async def test_a_backend_can_be_opened_again_after_its_loop_has_ended(
        self, make_backend: Callable[..., Any], topic: str
    ) -> None:
        backend, sink = make_backend(), Recorder()
        # As test clients do: the loop ends, and `close` is not called.
        await asyncio.to_thread(asyncio.run, backend.open())
        await backend.open()
        await backend.subscribe(topic, sink)
        backend.publish([Author().draft(topic)])
        await sink.wait_for_events(1)
        await backend.close()
        backend.close_writer()

    async def test_writes_work_without_open_and_after_close_writer(
        self, make_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = make_backend()
        author = Author()
        for _ in range(2):
            assert backend.publish([author.draft(topic)])[0].outcome is Outcome.APPENDED
            backend.close_writer()
            backend.close_writer()

    async def test_a_forked_child_and_its_parent_can_both_write(
        self, backend: Any, topic: str
    ) -> None:
        if not self.shares_storage or not hasattr(os, "fork"):
            return

        def write(author: Author) -> bool:
            return all(
                backend.publish([author.draft(topic)])[0].outcome is Outcome.APPENDED
                for _ in range(50)
            )

        assert write(Author())
        child = os.fork()
        if child == 0:
            # In every case, because the child must not continue with the test.
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
