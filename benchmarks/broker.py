"""The broker that is measured, started here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from semantik_realtime.testing.servers import (
    RedisServer,
    backend_url,
    redis_program,
    running,
    valkey_program,
)

BACKENDS = ("memory", "fakeredis", "valkey", "redis")


@contextlib.contextmanager
def server_url(backend: str) -> Iterator[str | None]:
    """A running server as one is operated: an append-only file, synced each second.

    Gives its URL; None where no server is needed.
    """
    if backend in ("valkey", "redis"):
        program = valkey_program() if backend == "valkey" else redis_program()
        with running(RedisServer(program, options=("--appendfsync", "everysec"))) as server:
            yield server.url
    else:
        with backend_url(backend) as url:
            yield url
