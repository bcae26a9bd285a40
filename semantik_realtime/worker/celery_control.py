"""Cancel a task through Celery's broker, from a process that serves others meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from semantik_realtime.core.workflow import whole_id
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.urls import mask_text
from semantik_realtime.worker.aborts import abort
from semantik_realtime.worker.outcome import find_app

logger = logging.getLogger(__name__)

BROKER_SECONDS = 4.0
"""Deadline of one command. A host's hooks have 5 s."""
MAX_CALLS = 8
"""Commands that may wait for the broker; a further one fails at once."""
RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.2}
"""Of a command's connection: kombu tries for ever by default."""


async def cancel(
    job: str, name: str | None, is_running: bool, terminate: str | None
) -> bool | None:
    """Tell all workers that a task, or a workflow, is revoked; None: there is no application.

    Raises:
        BackendUnavailable: the broker does not answer. The workers may be told later.
    """
    app = find_app()
    if app is None:
        return None
    await _call_apart(lambda: _revoke(app, job, terminate), f"broker, job={job}")
    if is_running and terminate is None:
        try:
            await _call_apart(lambda: abort(app, job, name), f"result backend, job={job}")
        except Exception as error:
            # The workers know already.
            logger.warning("celery: not aborted job=%s error=%s", job, mask_text(repr(error))[:200])
    return True


def _revoke(app: Any, job: str, terminate: str | None) -> None:
    options = {**(app.conf.broker_transport_options or {}), **RETRY_POLICY}
    with app.connection_for_write(
        connect_timeout=BROKER_SECONDS, transport_options=options
    ) as connection:
        mailbox = app.control.mailbox(connection)
        # Not through the application's pool of producers, in which calls would get stuck that the
        # host needs for its own tasks.
        mailbox.producer_pool = None
        arguments: dict[str, Any] = {
            "task_id": [job, whole_id(job)],
            "terminate": terminate is not None,
        }
        if terminate is not None:
            arguments["signal"] = terminate
        mailbox.abcast("revoke", arguments)


_waiting = threading.BoundedSemaphore(MAX_CALLS)


async def _call_apart(call: Callable[[], Any], what: str) -> None:
    """Run a blocking call in a daemon thread, which ends with the process however long it hangs.

    Raises:
        BackendUnavailable: too many calls hang already.
        TimeoutError: it has not returned in `BROKER_SECONDS`.
        Exception: as ``call``.
    """
    if not _waiting.acquire(blocking=False):
        raise BackendUnavailable(f"{MAX_CALLS} calls wait already: {what}")
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    failed: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            failed.append(error)
        finally:
            _waiting.release()
        # The loop may have ended meanwhile.
        try:
            loop.call_soon_threadsafe(done.set)
        except RuntimeError:
            return

    threading.Thread(target=run, name="semantik-realtime-celery", daemon=True).start()
    async with asyncio.timeout(BROKER_SECONDS):
        await done.wait()
    if failed:
        raise failed[0]
