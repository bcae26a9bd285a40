"""Removing what has expired."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from semantik_realtime_nats.link import Link, explain
from semantik_realtime_nats.log import decode
from semantik_realtime_nats.settings import Names
from semantik_realtime_nats.writer import change_lease

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0
LOGS_AT_ONCE = 100
LEASE = "semantik-realtime sweep"


async def sweep(link: Link, names: Names) -> int:
    """Purge every topic whose time is over; gives how many.

    A topic that begins anew meanwhile keeps what is new: it is behind the end
    of the stream as it was at first.
    """
    purged = 0
    offset = 0
    end: int | None = None
    while True:
        info = await link.info(subjects_filter=names.log_of("*"), offset=offset)
        state = info["state"]
        end = state["last_seq"] if end is None else end
        logs = list(state.get("subjects") or ())
        for start in range(0, len(logs), LOGS_AT_ONCE):
            found = await link.last(logs[start : start + LOGS_AT_ONCE])
            for log, stored in found.items():
                if decode(stored).expired(link.now()):
                    await link.purge(log.removesuffix("log") + ">", end + 1)
                    purged += 1
        offset += len(logs)
        if not logs or offset >= info.get("total", 0):
            return purged


async def sweep_for_ever(link: Callable[[], Awaitable[Link]], names: Names, holder: str) -> None:
    """Sweep every hour, if no other process has done it."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1))  # noqa: S311
        try:
            async with asyncio.timeout(SWEEP_SECONDS):
                if await change_lease(await link(), names, LEASE, _take_for(holder)):
                    logger.info("sweep: topics=%d", await sweep(await link(), names))
        except Exception as error:
            # There is another hour.
            logger.info("sweep: failed error=%s", explain(error))


def _take_for(holder: str) -> Callable[[dict[str, float], float], bool]:
    def take(held: dict[str, float], now: float) -> bool:
        if held:
            return False
        held[holder] = now + SWEEP_SECONDS / 2
        return True

    return take
