"""A worker that watches its tasks stops about as soon as one that does not, whatever the backend.

Broker and result backend are another server. With STOPPING=all every pool and signal is tried.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from celery_workers import POOLS, Place, Worker, running
from topic_log import wait_until

from semantik_realtime.testing.servers import RedisServer, free_port, valkey_program
from semantik_realtime.testing.servers import running as serving

PROMISE_SECONDS = 3.0
"""What our part may add to Celery's own time."""
SPARE_SECONDS = 4.0
"""What a busy machine may need more."""
LAST_SECONDS = 60.0
IS_ALL = os.environ.get("STOPPING") == "all"
TERM, QUIT = signal.SIGTERM, signal.SIGQUIT
BACKENDS = ("none", "healthy", "refuses", "hangs")
CASES = [(pool, signals) for pool in POOLS for signals in ((TERM,), (QUIT,), (TERM, TERM))]
FEW = [("prefork", (TERM, TERM)), ("gevent", (TERM,))]

pytestmark = pytest.mark.valkey

Start = Callable[..., dict[str, Worker]]


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture
def start(broker: str, place: Place, tmp_path: Path) -> Iterator[Start]:
    """Start a worker without the package, and one for each condition of its backend."""
    with ExitStack() as stack:
        hanging = stack.enter_context(serving(RedisServer(valkey_program())))
        urls = {
            "none": place.url,
            "healthy": place.url,
            "refuses": f"redis://127.0.0.1:{free_port()}/0",
            "hangs": hanging.url,
        }

        def start(pool: str) -> dict[str, Worker]:
            workers = {}
            for condition in BACKENDS:
                (tmp_path / condition).mkdir()
                environment = {"SEMANTIK_REALTIME_MIRROR": str(condition != "none").lower()}
                workers[condition] = stack.enter_context(
                    running(
                        broker,
                        Place("redis", urls[condition]),
                        pool,
                        tmp_path / condition,
                        **environment,
                    )
                )
            hanging.pause()
            stack.callback(hanging.resume)
            # The events of these tasks wait for the backend.
            results = [
                worker.app.AsyncResult(worker.send("emit_many", 20)) for worker in workers.values()
            ]
            for result in results:
                result.get(timeout=60)
            return workers

        yield start


def stop(workers: dict[str, Worker], signals: tuple[signal.Signals, ...]) -> dict[str, float]:
    """Send the signals to all at once; return after how many seconds each has ended."""
    began, took = time.monotonic(), dict.fromkeys(workers, LAST_SECONDS)
    for number in signals:
        for worker in workers.values():
            if worker.process.poll() is None:
                worker.process.send_signal(number)
        time.sleep(0.5 if len(signals) > 1 else 0)
    left = dict(workers)

    def have_ended() -> bool:
        for condition in [name for name in left if left[name].process.poll() is not None]:
            took[condition] = time.monotonic() - began
            del left[condition]
        return not left

    wait_until(have_ended, LAST_SECONDS)
    return took


@pytest.mark.parametrize(
    ("pool", "signals"),
    CASES if IS_ALL else FEW,
    ids=lambda value: value if isinstance(value, str) else "-".join(one.name for one in value),
)
def test_a_worker_stops_in_celerys_own_time_and_three_seconds(
    start: Start, pool: str, signals: tuple[signal.Signals, ...]
) -> None:
    workers = start(pool)
    took = stop(workers, signals)
    print(f"{pool} {signals}: {took}, load {os.getloadavg()[0]:.1f}")
    for condition, seconds in took.items():
        more = seconds - took["none"]
        assert more < PROMISE_SECONDS + SPARE_SECONDS, (
            condition,
            workers[condition].output[-2000:],
        )
