"""Every promise of a backend, as a test.

Subclass it in your own test suite and give it a fixture::

    from semantik_realtime.testing.contract import BackendContract

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def make_backend(self):
            def make(**settings):
                return MyBackend(load_settings(backend="mine", url=..., **settings))
            return make

``make_backend()`` gives a new instance over the same storage each time it is
called in a test (two instances are two processes of a fleet). The storage need
not be empty: every test has topics of its own. Some tests give settings by
keyword, such as a short retention; they wait by the real clock.

It needs pytest and pytest-asyncio, in any mode. docs/backend-authors.md says
what each promise is for.
"""

from __future__ import annotations

import pytest

# Before they are imported: otherwise a failed assertion would not show its values.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            *("appending", "fence", "states", "resuming"),
            *("lifetime", "live", "leases", "guest"),
        )
    )
)

from semantik_realtime.testing.contract.actors import Author, Recorder  # noqa: E402
from semantik_realtime.testing.contract.appending import Appending  # noqa: E402
from semantik_realtime.testing.contract.fence import Fence  # noqa: E402
from semantik_realtime.testing.contract.guest import Guest  # noqa: E402
from semantik_realtime.testing.contract.leases import Leases  # noqa: E402
from semantik_realtime.testing.contract.lifetime import Lifetime  # noqa: E402
from semantik_realtime.testing.contract.live import Live  # noqa: E402
from semantik_realtime.testing.contract.resuming import Resuming  # noqa: E402
from semantik_realtime.testing.contract.states import States  # noqa: E402
from semantik_realtime.testing.contract.waiting import (  # noqa: E402
    DEADLINE_SECONDS,
    until,
    until_known,
    until_unknown,
)

__all__ = [
    "DEADLINE_SECONDS",
    "Author",
    "BackendContract",
    "Recorder",
    "until",
    "until_known",
    "until_unknown",
]


class BackendContract(Appending, Fence, States, Resuming, Lifetime, Live, Leases, Guest):
    """What must hold for every backend, on default settings where no test says otherwise."""
