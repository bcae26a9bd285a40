"""The state of a job that another process ran, as the backend has it.

The main process of a worker needs it to end the job of a child that was
killed: only the child knew its progress and its fields.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from semantik_realtime.core.topic import job_topic
from semantik_realtime.native_threads import make_event, make_thread
from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_text

logger = logging.getLogger(__name__)


def read_stored_state(runtime: Runtime, job_id: str) -> dict[str, Any]:
    """Return the job's state from the backend; empty without an answer in ``flush_seconds``.

    Read through a backend of its own, on a loop in a thread: a loop of the
    process may own the connections of the other backend.
    """
    if runtime.backend.fails_writes:
        return {}
    backend = runtime.second_backend()
    if backend is None:
        return {}

    state: dict[str, Any] = {}
    is_read = make_event()

    async def read() -> None:
        try:
            await backend.open()
            snapshot = await backend.snapshot(job_topic(job_id), None, 0)
            if job_id in snapshot.states:
                state.update(msgspec.json.decode(snapshot.states[job_id])["state"])
        except Exception as error:
            logger.warning(
                "tracker: stored state not read job=%s error=%s", job_id, mask_text(repr(error))
            )
        finally:
            # Before the connections are closed: the caller need not wait for that.
            is_read.set()
            await backend.close()

    make_thread(lambda: asyncio.run(read()), "semantik-realtime-state").start()
    return dict(state) if is_read.wait(runtime.settings.flush_seconds) else {}
