"""Ports of this machine, kept so that no other program gets them before they are used."""

from __future__ import annotations

import socket

from semantik_realtime.cli.program import DemoFailed

HOST = "127.0.0.1"


def listen(port: int | None, preferred: int) -> socket.socket:
    """Return a socket that listens on ``port``; without one on ``preferred``, or on any free one.

    Raises:
        DemoFailed: ``port`` is taken.
    """
    for number in (preferred, 0) if port is None else (port,):
        try:
            return socket.create_server((HOST, number))
        except OSError as error:
            failure = error
    raise DemoFailed(f"port {port} cannot be used: {failure.strerror}; choose another --port")


def reserve_port() -> socket.socket:
    """Return a socket that keeps a port for a server with the option SO_REUSEADDR.

    That server can listen on the port while the socket is open; for any other
    program that looks for a free port it is taken.
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind((HOST, 0))
    return keeper


def port_of(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])
