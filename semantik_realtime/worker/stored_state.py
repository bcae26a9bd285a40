"""The state of a job that another process ran, as the backend has it.

The main process of a worker needs it to end the job of a child that was
killed: only the child knew its progress and its fields.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import msgspec

from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_text

logger = logging.getLogger(__name__)


def read_stored_state(runtime: Runtime, topic: str, job_id: str) -> dict[str, Any]:
    """Return the job's state in ``topic`` from the backend.

    Empty without an answer in ``flush_seconds``.

    Read through a backend of its own, on a loop in a thread: a loop of the
    process may own the connections of the other backend.
    """
    if runtime.backend.fails_writes:
        return {}
    backend = runtime.second_backend()
    if backend is None:
        return {}

    state: dict[str, Any] = {}
    is_read = threading.Event()

    async def read() -> None:
        try:
            await backend.open()
            snapshot = await backend.snapshot(topic, None, 0)
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

    threading.Thread(target=lambda: asyncio.run(read()), daemon=True).start()
    return dict(state) if is_read.wait(runtime.settings.flush_seconds) else {}
