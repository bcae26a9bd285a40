"""The contract suite: every promise of `semantik_realtime.hookspecs.Backend` as a test.

Subclass `BackendContract` in your test suite and define one fixture::

    from semantik_realtime.testing.contract import BackendContract

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def make_backend(self):
            def make(**settings):
                return MyBackend(load_settings(backend="mine", url=..., **settings))
            return make

Each call of ``make_backend`` within a test returns a new instance on the same
storage: two instances are two processes of a fleet. The storage need not be
empty, because every test has its own topics. Some tests pass settings by
keyword, a short retention for example, and wait on the real clock.

The suite needs pytest and pytest-asyncio, in any mode. docs/backend-authors.md
explains what each promise is for.
"""

from __future__ import annotations

import pytest

# Before the imports: otherwise a failed assertion would not show its values.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            *("appending", "fence", "ownership", "states", "resuming", "reading"),
            *("lifetime", "live", "leases", "holding", "process", "sinks"),
        )
    )
)

from semantik_realtime.testing.contract.actors import Author, Recorder  # noqa: E402
from semantik_realtime.testing.contract.sinks import SinkContract  # noqa: E402
from semantik_realtime.testing.contract.suite import BackendContract  # noqa: E402
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
    "SinkContract",
    "until",
    "until_known",
    "until_unknown",
]
