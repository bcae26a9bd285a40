"""The price of a hook's call is measured for each way of calling it."""

from benchmarks.hooks import measure, ways


def test_each_way_of_calling_publish_is_measured() -> None:
    best = measure(calls=200, rounds=2)
    assert list(best) == list(ways())
    assert all(0 < micros < 10_000 for micros in best.values())


def test_a_wrapped_hook_goes_through_the_plugin_and_the_others_do_not() -> None:
    called = {name: call(()) for name, call in ways().items()}
    assert called == dict.fromkeys(called, [])
    bound = ways()["bound, no plugin"]
    assert bound.__name__ == "publish"
    assert not hasattr(bound, "__wrapped__")
