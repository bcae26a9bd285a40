"""The broker that is measured, started here."""

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
def server_url(backend: str) -> Iterator[str | None]:
    """A running server as one is operated: what it keeps is on disk, synced each second.

    Gives its URL; None where no server is needed.
    """
    if backend == "nats":
        with running(_operated_nats()) as nats:
            yield nats.url
    elif backend in PROGRAMS:
        program = PROGRAMS[backend]()
        with running(RedisServer(program, options=("--appendfsync", "everysec"))) as server:
            yield server.url
    else:
        with backend_url(backend) as url:
            yield url


def server_versions(backends: Collection[str]) -> dict[str, str]:
    """What the servers of ``backends`` say of themselves; none where there is no program."""
    versions = {}
    for name, find in PROGRAMS.items():
        if name in backends:
            with contextlib.suppress(ServerMissing):
                told = subprocess.run([find(), "--version"], capture_output=True, text=True)
                found = re.search(r"\d+\.\d+\.\d+", told.stdout)
                versions[name] = found.group() if found else told.stdout.strip()
    return versions


def settings_for(backend: str, url: str | None, **given: object) -> Settings:
    """Settings that choose ``backend`` at ``url``, and are the defaults in all else."""
    return load_settings(backend=ROWS[backend].backend, url=url, **given)


def _operated_nats() -> NatsServer:
    server = NatsServer(nats_program(), jetstream=False)
    with (server.directory / "conf").open("a") as conf:
        conf.write(f'\njetstream {{ store_dir: "{server.directory}", sync_interval: "1s" }}\n')
    return server
