"""The page's buttons that break something: only where `semantik-realtime demo` runs the programs.

The demo's supervisor leaves one end of a pair of sockets open in this process
(DEMO_FAULTS_SOCKET). This process may name a fault; it has no right over other
processes, and without the socket there is no route.
"""

import json
import os
import socket
import stat
import threading
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request

from semantik_realtime.demo.routes import UserOf

FAULTS = ("kill-children", "kill-worker", "restart-web", "stop-engine")
ANSWER_SECONDS = 15.0
"""Longer than the supervisor needs to stop a program."""
MAX_ANSWER_BYTES = 4000

router = APIRouter(prefix="/api/faults")


class Supervisor:
    """The supervisor, as this process can reach it. From any thread.

    Args:
        descriptor: of the socket that the supervisor reads.

    Raises:
        OSError: it is no socket.
    """

    def __init__(self, descriptor: int) -> None:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(f"descriptor {descriptor} is no socket")
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(ANSWER_SECONDS)
        self._lock = threading.Lock()
        self._number = 0
        """Of the last request; older answers are those of requests that nobody waits for."""

    def cause(self, fault: str) -> str:
        """Cause a fault; return what was done, as a sentence.

        Raises:
            OSError: the supervisor does not answer in time.
        """
        with self._lock:
            self._number += 1
            number = f"{os.getpid()}.{self._number}"
            self._socket.send(json.dumps({"number": number, "fault": fault}).encode())
            while True:
                answer = json.loads(self._socket.recv(MAX_ANSWER_BYTES))
                if answer["number"] == number:
                    return str(answer["sentence"])


def find_supervisor() -> Supervisor | None:
    """Return the supervisor that started this process, or None if nothing can be asked of it."""
    try:
        return Supervisor(int(os.environ["DEMO_FAULTS_SOCKET"]))
    except (KeyError, ValueError, OSError):
        return None


def get_supervisor(request: Request) -> Supervisor:
    supervisor: Supervisor | None = request.app.state.supervisor
    if supervisor is None:
        raise HTTPException(404, "Not Found")
    return supervisor


SupervisorOf = Annotated[Supervisor, Depends(get_supervisor)]


@router.get("")
def list_faults(supervisor: SupervisorOf, user: UserOf) -> dict[str, Any]:
    return {"faults": FAULTS}


@router.post("/{fault}", status_code=202)
def cause_fault(fault: str, supervisor: SupervisorOf, user: UserOf) -> dict[str, str]:
    """Cause a fault. The request guard has refused requests of other sites before."""
    if fault not in FAULTS:
        raise HTTPException(404, "no such fault")
    try:
        return {"sentence": supervisor.cause(fault)}
    except OSError as error:
        raise HTTPException(503, "the demo does not answer; try again") from error
