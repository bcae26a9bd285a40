"""The places of a lease are counted over the fleet."""

from __future__ import annotations

import secrets
from typing import Any

from semantik_realtime.testing.contract.fixtures import Fixtures
from semantik_realtime.testing.contract.waiting import until


class Leases(Fixtures):
    """The places of a lease are counted over the fleet."""

    async def test_no_more_than_the_limit_hold_a_lease(self, backend: Any) -> None:
        name = secrets.token_hex(6)
        granted = [backend.lease(name, f"h{n}", 3, 60.0) for n in range(5)]
        assert granted == [True, True, True, False, False]
        assert backend.lease(name, "h1", 3, 60.0) is True
        assert backend.release(name, "h1") is True
        assert backend.release(name, "h1") is False
        assert backend.lease(name, "h4", 3, 60.0) is True
        assert backend.lease(name, "h1", 3, 60.0) is False

    async def test_a_lease_that_is_not_renewed_expires(self, backend: Any) -> None:
        name = secrets.token_hex(6)
        assert backend.lease(name, "a", 1, 0.15)
        await until(lambda: backend.lease(name, "b", 1, 60.0), "the lease to expire")
        assert not backend.lease(name, "a", 1, 60.0)

    async def test_leases_of_other_names_do_not_count(self, backend: Any) -> None:
        name = secrets.token_hex(6)
        assert backend.lease(name + "a", "h", 1, 60.0)
        assert backend.lease(name + "b", "h", 1, 60.0)
