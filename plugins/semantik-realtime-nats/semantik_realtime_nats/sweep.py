"""Removing the topics that have expired from the stream."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from semantik_realtime_nats.errors import explain
from semantik_realtime_nats.lease import acquire_lease
from semantik_realtime_nats.log import decode_message
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0
LOGS_AT_ONCE = 100
LEASE = "semantik-realtime sweep"


async def sweep(stream: Stream, subjects: Subjects) -> int:
    """Purge every topic that has expired, and return how many.

    A topic that begins a new epoch during the sweep keeps it: only messages are purged that
    were in the stream when the sweep began.
    """
    purged = 0
    offset = 0
    last_seq: int | None = None
    while True:
        info = await stream.read_info(subjects_filter=subjects.log("*"), offset=offset)
        state = info["state"]
        last_seq = state["last_seq"] if last_seq is None else last_seq
        logs = list(state.get("subjects") or ())
        for start in range(0, len(logs), LOGS_AT_ONCE):
            found = await stream.read_last(logs[start : start + LOGS_AT_ONCE])
            for log, stored in found.items():
                last = decode_message(log, stored)
                if last is not None and await stream.is_past(last.expires_at):
                    await stream.purge(log.removesuffix("log") + ">", last_seq + 1)
                    purged += 1
        offset += len(logs)
        if not logs or offset >= info.get("total", 0):
            return purged


async def sweep_forever(
    current_stream: Callable[[], Awaitable[Stream]], subjects: Subjects, holder: str
) -> None:
    """Sweep about every hour, unless another process of the fleet has done so.

    Args:
        current_stream: returns the stream on an open connection.
        subjects: of the application.
        holder: a name for this process.
    """
    while True:
        await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1))  # noqa: S311
        try:
            async with asyncio.timeout(SWEEP_SECONDS):
                stream = await current_stream()
                if await acquire_lease(stream, subjects, LEASE, holder, 1, SWEEP_SECONDS / 2):
                    logger.info("sweep: purged topics=%d", await sweep(stream, subjects))
        except Exception as error:
            logger.info("sweep: failed, trying again in an hour error=%s", explain(error))
