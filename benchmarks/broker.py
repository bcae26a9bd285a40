"""The brokers of the benchmarks: servers on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Collection, Iterator

from semantik_realtime.config import Settings, load_settings
from semantik_realtime.testing.servers import (
    ROWS,
    NatsServer,
    RedisServer,
    Server,
    ServerMissing,
    backend_url,
    nats_program,
    redis_program,
    running,
    valkey_program,
)

BACKENDS = tuple(ROWS)
PROGRAMS = {"valkey": valkey_program, "redis": redis_program, "nats": nats_program}


@contextlib.contextmanager
def running_server(backend: str) -> Iterator[Server]:
    """Run a server of `PROGRAMS` that syncs its log to disk each second, as in production.

    Raises:
        ServerMissing: its program is not installed.
    """
    if backend == "nats":
        with running(_nats_server()) as nats:
            yield nats
    else:
        program = PROGRAMS[backend]()
        with running(RedisServer(program, options=("--appendfsync", "everysec"))) as server:
            yield server


@contextlib.contextmanager
def server_url(backend: str) -> Iterator[str | None]:
    """Run the server of a backend as `running_server`.

    Yields its URL, or None if the backend needs no server.

    Raises:
        ServerMissing: its program is not installed.
    """
    if backend in PROGRAMS:
        with running_server(backend) as server:
            yield server.url
    else:
        with backend_url(backend) as url:
            yield url


def server_versions(backends: Collection[str]) -> dict[str, str]:
    """Return the versions of the servers of ``backends`` whose programs are installed."""
    versions = {}
    for name, find in PROGRAMS.items():
        if name in backends:
            with contextlib.suppress(ServerMissing):
                process = subprocess.run([find(), "--version"], capture_output=True, text=True)
                found = re.search(r"\d+\.\d+\.\d+", process.stdout)
                versions[name] = found.group() if found else process.stdout.strip()
    return versions


def settings_for(backend: str, url: str | None, **changes: object) -> Settings:
    """Return the default settings with ``backend`` at ``url``, and with the given changes."""
    return load_settings(backend=ROWS[backend].backend, url=url, **changes)


def _nats_server() -> NatsServer:
    server = NatsServer(nats_program(), jetstream=False)
    with (server.directory / "conf").open("a") as conf:
        conf.write(f'\njetstream {{ store_dir: "{server.directory}", sync_interval: "1s" }}\n')
    return server
