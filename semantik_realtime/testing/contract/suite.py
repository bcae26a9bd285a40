"""All parts of the contract in one class."""

from __future__ import annotations

from semantik_realtime.testing.contract.appending import Appending
from semantik_realtime.testing.contract.fence import Fence
from semantik_realtime.testing.contract.holding import Holders
from semantik_realtime.testing.contract.leases import Leases
from semantik_realtime.testing.contract.lifetime import Lifetime
from semantik_realtime.testing.contract.live import Live
from semantik_realtime.testing.contract.ownership import Ownership
from semantik_realtime.testing.contract.process import Process
from semantik_realtime.testing.contract.reading import Reading
from semantik_realtime.testing.contract.resuming import Resuming
from semantik_realtime.testing.contract.states import States


class BackendContract(
    Appending,
    Fence,
    Ownership,
    States,
    Resuming,
    Reading,
    Lifetime,
    Live,
    Leases,
    Holders,
    Process,
):
    """All tests of the contract; with default settings where a test does not pass others."""
