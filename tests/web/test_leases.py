"""Leases of connections: none is left of a connection that has ended."""

from __future__ import annotations

import asyncio
import threading

import pytest
from waiting import until

from semantik_realtime.errors import BackendUnavailable, TopicRefused
from semantik_realtime.web import limiter
from semantik_realtime.web.limiter import ConnectionLimiter


class SlowLeases:
    """Leases in memory; each renewal waits at a gate."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.renewing: list[str] = []
        """The holders whose renewal has begun."""
        self.gate = threading.Event()

    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        if holder in self.held:
            self.renewing.append(holder)
            self.gate.wait(10)
        self.held.add(holder)
        return True

    def release(self, name: str, holder: str) -> bool:
        self.held.discard(holder)
        return True


async def test_a_connection_that_ends_while_the_leases_are_renewed_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limiter, "RENEW_SECONDS", 0.01)
    leases = SlowLeases()
    limited = ConnectionLimiter(leases, 10, 10)
    for connection_id in ("first", "second"):
        assert await limited.admit("7", connection_id)
    await until(lambda: leases.renewing)
    # The first is being renewed, and the second is about to be.
    limited.release("7", "first")
    limited.release("7", "second")
    await until(lambda: not leases.held)
    leases.gate.set()
    # The renewal goes on in its thread; without connections it is the last one.
    await until(lambda: "ConnectionLimiter._renew()" not in str(asyncio.all_tasks()))
    assert not leases.held
    await limited.close()


class PartlyRefusedLeases(SlowLeases):
    """The place of one user is refused."""

    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        if name == "connections:7":
            raise TopicRefused(name, "WRONGTYPE")
        self.renewing.append(holder)
        return True


async def test_a_refused_lease_is_logged_once_and_the_others_are_renewed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limiter, "RENEW_SECONDS", 0.01)
    leases = PartlyRefusedLeases()
    limited = ConnectionLimiter(leases, 10, 10)
    assert await limited.admit("7", "refused")
    assert await limited.admit("8", "granted")
    await until(lambda: leases.renewing.count("granted") > 3)
    assert caplog.text.count("limiter: lease refused") == 1
    await limited.close()


async def test_a_renewal_that_fails_is_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    class FailingLeases(SlowLeases):
        def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
            if len(pauses) == 1:
                raise BackendUnavailable("it is away for a moment")
            return True

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await pause(0.01)

    pause = asyncio.sleep
    monkeypatch.setattr(limiter.asyncio, "sleep", sleep)
    limited = ConnectionLimiter(FailingLeases(), 10, 10)
    assert await limited.admit("7", "one")
    while len(pauses) < 3:
        await pause(0.01)
    limited.release("7", "one")
    await limited.close()
    assert pauses[:3] == [limiter.RENEW_SECONDS, limiter.RETRY_SECONDS, limiter.RENEW_SECONDS]
