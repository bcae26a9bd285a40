"""A RabbitMQ server for tests, from Debian's package, as a process of its own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from semantik_realtime.testing.servers import Server, ServerMissing, free_port

# Not the one on the path, which runs only for root or the user of the package.
PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_SECONDS = 90.0


class RabbitServer(Server):
    """One node, with a port mapper of its own, so that it meets no other node of this machine.

    Raises:
        ServerMissing: it is not installed.
    """

    def __init__(self) -> None:
        epmd = shutil.which("epmd")
        if not PROGRAM.exists() or epmd is None:
            raise ServerMissing("rabbitmq-server is missing: apt-get install rabbitmq-server")
        super().__init__("/usr/bin/env")
        self._epmd = epmd
        self._epmd_port = free_port()
        # From `start` to the end of the server.
        self._mapper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self, seconds: float = START_SECONDS) -> None:
        self._mapper = subprocess.Popen(
            [self._epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        )
        super().start(seconds)

    def _options(self) -> Sequence[str]:
        directory = self.directory
        settings = {
            "HOME": directory,
            "ERL_EPMD_PORT": self._epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # The script becomes the server, instead of waiting for it.
            "RUNNING_UNDER_SYSTEMD": "1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": free_port(),
            "RABBITMQ_MNESIA_BASE": directory / "data",
            "RABBITMQ_LOG_BASE": directory / "logs",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": directory / "pid",
            "RABBITMQ_CONFIG_FILE": directory / "conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": directory / "advanced",
            "RABBITMQ_CONF_ENV_FILE": directory / "environment",
            "RABBITMQ_ENABLED_PLUGINS_FILE": directory / "plugins",
        }
        return [*(f"{name}={value}" for name, value in settings.items()), str(PROGRAM)]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as link:
                link.sendall(b"AMQP\x00\x00\x09\x01")
                # The method `connection.start`.
                return link.recv(7).startswith(b"\x01\x00\x00")
        except OSError:
            return False

    def _end(self, how: object) -> None:
        super()._end(how)  # type: ignore[arg-type]
        mapper, self._mapper = self._mapper, None
        if mapper is not None:
            mapper.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                mapper.wait(10)
