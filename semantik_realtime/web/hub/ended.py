"""The end of a connection by the server."""

from __future__ import annotations

from semantik_realtime.core.session import CloseCode


class Ended(Exception):
    """The server ends the connection, with a close code and a reason."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
