"""The clock of the backend's server, by which times are judged that other hosts have written."""

from __future__ import annotations

import time

from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Backend


async def read_server_time(backend: Backend) -> float:
    """Return the server's time, in seconds since 1970; this host's if the server tells none.

    Raises:
        BackendUnavailable: the server does not answer.
    """
    status = await backend.status()
    if not status.reachable:
        raise BackendUnavailable(status.server)
    return time.time() + (status.clock_ahead_seconds or 0.0)
