"""The price of a hook's call is measured for each way of calling it."""

from collections.abc import Generator, Sequence
from typing import Any

from benchmarks.hooks import measure, ways
from semantik_realtime.core.event import Draft
from semantik_realtime.hookspecs import hookimpl


class CountingWrapper:
    def __init__(self) -> None:
        self.calls = 0

    @hookimpl(wrapper=True)
    def publish(self, drafts: Sequence[Draft]) -> Generator[None, Any, Any]:
        self.calls += 1
        return (yield)


def test_each_way_of_calling_publish_is_measured() -> None:
    best = measure(calls=200, rounds=2)
    assert list(best) == list(ways(CountingWrapper()))
    assert all(0 < micros < 10_000 for micros in best.values())


def test_only_the_wrapped_way_goes_through_the_plugin() -> None:
    wrapper = CountingWrapper()
    calls = {}
    for name, call in ways(wrapper).items():
        before = wrapper.calls
        assert call(()) == []
        calls[name] = wrapper.calls - before
    assert list(calls.values()) == [0, 0, 0, 1]
