"""Faults that the demo's page may cause: it asks through a pair of sockets, and nobody else can.

The web server inherits one end. It can name a fault and nothing more: which
process that concerns is decided here.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from semantik_realtime.cli.program import Program

AWAY_SECONDS = 20.0
"""How long the engine stays away."""
MAX_REQUEST_BYTES = 1000
VARIABLE = "DEMO_FAULTS_SOCKET"
"""Names the web server's end, in its environment."""
ANSWER_SECONDS = 0.2
"""Time for the answer to leave the web server before it is stopped itself."""


class Faults:
    """Causes faults in the programs of the demo. For one thread.

    Args:
        programs: returns the running program of a name.
        engine: the name of the program that the live updates go through.
    """

    def __init__(self, programs: Callable[[str], Program], engine: str) -> None:
        self._programs = programs
        self._engine = engine
        # Datagrams, so that a request is whole or not there.
        self._ours, self.inherited = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)
        self.inherited.set_inheritable(True)
        self._by_name: dict[str, Callable[[], str]] = {
            "kill-children": self._kill_children,
            "kill-worker": self._kill_worker,
            "restart-web": self._restart_web,
            "stop-engine": self._stop_engine,
        }

    def serve(self, seconds: float) -> list[str]:
        """Wait at most ``seconds`` for a request; return a sentence about each that was served."""
        ready, _, _ = select.select([self._ours], [], [], seconds)
        sentences = []
        while ready:
            try:
                request = self._ours.recv(MAX_REQUEST_BYTES)
            except BlockingIOError:
                break
            sentences += self._answer(request)
        return sentences

    def close(self) -> None:
        """Close both ends."""
        self._ours.close()
        self.inherited.close()

    def _answer(self, request: bytes) -> list[str]:
        try:
            asked = json.loads(request)
            number, fault = asked["number"], self._by_name[asked["fault"]]
        except (ValueError, LookupError, TypeError):
            return []
        if fault == self._restart_web:
            sentence = "The web server restarts."
            self._send(number, sentence)
            time.sleep(ANSWER_SECONDS)
            fault()
        else:
            sentence = fault()
            self._send(number, sentence)
        return [sentence]

    def _send(self, number: int, sentence: str) -> None:
        try:
            self._ours.send(json.dumps({"number": number, "sentence": sentence}).encode())
        except OSError:
            # Nobody has read the answers before; the page shows that it got none.
            return

    def _kill_children(self) -> str:
        worker = self._programs("worker")
        children = children_of(worker.pid) if worker.is_running else []
        for child in children:
            os.kill(child, signal.SIGKILL)
        if not children:
            return "The worker has no children now: it is starting."
        numbers = ", ".join(map(str, children))
        return f"The worker’s children were killed: {numbers}. It starts new ones."

    def _kill_worker(self) -> str:
        worker = self._programs("worker")
        pid = worker.pid
        if not worker.is_running:
            return "The worker is away already: it is started again."
        worker.interrupt(0, kill=True)
        return f"The worker, process {pid}, was killed with its children. It is started again."

    def _restart_web(self) -> str:
        self._programs("web").interrupt(0)
        return ""

    def _stop_engine(self) -> str:
        engine = self._programs(self._engine)
        name = {"nats": "NATS"}.get(engine.name, engine.name.capitalize())
        if not engine.is_running:
            return f"The broker ({name}) is away already."
        engine.interrupt(AWAY_SECONDS)
        return f"The broker ({name}) was stopped. It is back in {AWAY_SECONDS:.0f} s."


def children_of(pid: int) -> list[int]:
    """Return the ids of the children of a process."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in file.read_text().split()]
    except OSError:
        # Not Linux.
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        pairs = (line.split() for line in listed.stdout.splitlines())
        return [int(child) for child, parent in pairs if int(parent) == pid]
