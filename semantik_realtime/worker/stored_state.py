"""What another process has stored in the backend: a job's state, and the cancelled jobs.

The main process of a worker needs it to end the job of a child that was
killed: only the child knew its progress and its fields.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from semantik_realtime.core.cancelling import CONTROL_TOPIC
from semantik_realtime.hookspecs import Backend
from semantik_realtime.native_threads import make_event, make_thread
from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_text
from semantik_realtime.worker.listener import read_requests

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


def read_stored_state(runtime: Runtime, topic: str, job_id: str) -> dict[str, Any]:
    """Return the job's state in ``topic`` from the backend.

    Empty without an answer in ``flush_seconds``.
    """

    async def read(backend: Backend) -> dict[str, Any]:
        snapshot = await backend.snapshot(topic, None, 0)
        if job_id not in snapshot.states:
            return {}
        return dict(msgspec.json.decode(snapshot.states[job_id])["state"])

    return _read_apart(runtime, read, topic) or {}


def read_cancelled_jobs(runtime: Runtime) -> list[str]:
    """Return the jobs that were cancelled lately, oldest first; empty as `read_stored_state`."""
    return _read_apart(runtime, read_requests, CONTROL_TOPIC) or []


def _read_apart(
    runtime: Runtime, read: Callable[[Backend], Coroutine[Any, Any, Answer]], topic: str
) -> Answer | None:
    """Return what ``read`` returns; None without an answer in ``flush_seconds``.

    Read through a backend of its own, on a loop in a thread: a loop of the
    process may own the connections of the other backend.
    """
    if runtime.backend.fails_writes:
        return None
    backend = runtime.second_backend()
    if backend is None:
        return None

    answers: list[Answer] = []
    is_read = make_event()

    async def read_once() -> None:
        try:
            await backend.open()
            answers.append(await read(backend))
        except Exception as error:
            logger.warning(
                "tracker: stored state not read topic=%s error=%s", topic, mask_text(repr(error))
            )
        finally:
            # Before the connections are closed: the caller need not wait for that.
            is_read.set()
            await backend.close()

    make_thread(lambda: asyncio.run(read_once()), "semantik-realtime-state").start()
    is_read.wait(runtime.settings.flush_seconds)
    return answers[0] if answers else None
