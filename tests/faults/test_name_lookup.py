"""A broker whose name stops resolving while a web server runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clients import NativeClient
from configuration import make_settings
from publisher import Publisher
from record import Record
from waiting import until
from web_servers import server_processes

from semantik_realtime.testing.servers import ROWS, Server

SHOWN_SECONDS = 5.0
BACK_SECONDS = 15.0
"""Emitter and subscription pause for up to 5 s each between two tries."""


pytestmark = pytest.mark.usefixtures("quick_recalls")


class HostsFile:
    """The hosts file of a process, which the resolver reads when its modification time changes."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hosts"
        self.variables = {
            "LD_PRELOAD": "libnss_wrapper.so",
            "NSS_WRAPPER_HOSTS": str(self.file),
        }
        self._time = int(time.time())

    def write(self, *hosts: str) -> None:
        self.file.write_text("".join(f"127.0.0.1 {name}\n" for name in hosts))
        # The resolver compares whole seconds, so each change takes another one.
        self._time += 1
        os.utime(self.file, (self._time, self._time))

    def resolves(self, name: str) -> bool:
        """Return True if a process with these variables resolves ``name``."""
        look = f"import socket; socket.getaddrinfo({name!r}, 1)"
        command = [sys.executable, "-c", look]
        return not subprocess.run(
            command, env={**os.environ, **self.variables}, capture_output=True
        ).returncode


async def test_a_name_that_stops_resolving_is_looked_up_again(
    server: Server, row: str, tmp_path: Path, record: Record
) -> None:
    hosts = HostsFile(tmp_path)
    hosts.write("broker.test", "other.test")
    if not hosts.resolves("broker.test"):
        pytest.skip("libnss_wrapper.so is missing: apt-get install libnss-wrapper")
    known, named = server.url, server.url.replace("127.0.0.1", "broker.test")
    given = {"timeout_seconds": 1.0, "tops_seconds": 1.0, "backend": ROWS[row].backend}
    settings = make_settings(named, **given)
    publisher = Publisher(make_settings(known, prefix=settings.prefix, **given))
    await publisher.publish("job:1", 1)
    variables = {**hosts.variables, "TEST_RECORD": str(tmp_path), "PYTHONPATH": _python_path()}
    async with (
        server_processes(1, settings, app="host:app", **variables) as [web_server],
        web_server.http_client() as http,
        NativeClient(web_server, "job:1") as client,
    ):
        await client.wait_synced()
        hosts.write("other.test")
        server.kill()
        # The broker runs again, but its name does not resolve.
        server.start()
        await publisher.publish("job:1", 3)
        await client.wait_for("degraded")
        published = await http.post("/publish/1", json={"status": "running", "message": "hello"})
        assert published.json() == {"outcome": "waiting"}
        await until(
            lambda: client.views["job:1"].states["1"].get("message") == "hello", SHOWN_SECONDS
        )
        assert not client.ops("restored")
        hosts.write("broker.test", "other.test")
        await client.wait_for("restored", 1, 2 * BACK_SECONDS)
        await client.wait_for_offset("job:1", 5)
        assert [event.get("data") for event in client.applied["job:1"]] == [
            *({"i": number} for number in (1, 2, 3)),
            None,
        ]
        assert (client.connections, client.bad_batches) == (1, [])
    publisher.close()


def _python_path() -> str:
    return os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
