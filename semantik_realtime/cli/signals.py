"""SIGTERM and SIGHUP as Ctrl-C, for commands that have something to end in order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def stopping_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what SIGINT does: asyncio ends its tasks in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    handlers = {name: interrupt for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)}
    before = {name: signal.signal(getattr(signal, name), handlers[name]) for name in handlers}
    # A shell makes SIGINT ignored for a command in the background.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        before["SIGINT"] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
