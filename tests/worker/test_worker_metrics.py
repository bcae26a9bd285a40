"""The metrics of emitters, and how a worker of several processes exports their sums."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from test_workers import Place, Worker, running
from topic_log import wait_until

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, Receipt, StateChange, encode_body
from semantik_realtime.emitter import sender
from semantik_realtime.emitter.emitter import Emitter
from semantik_realtime.errors import AppendUncertain, BackendUnavailable
from semantik_realtime.metrics import writing
from semantik_realtime.testing.servers import free_port

Numbers = dict[tuple[str, ...], float]


def draft(
    number: int,
    *,
    key: str = "1",
    terminal: bool = False,
    attempt: int = 1,
    owner: str | None = "7",
) -> Draft:
    return Draft(
        topic="job:1",
        # Of which no report says how many were dropped.
        type="job_progress",
        key=key,
        body=encode_body("job_progress", "2026-01-01T00:00:00.000Z", key, state={"number": number}),
        change=StateChange.SET,
        terminal=terminal,
        job="1",
        attempt=attempt,
        owner=owner,
    )


class Line:
    """The memory backend behind a line that can be cut, and can lose one reply."""

    def __init__(self) -> None:
        self.guard = GuardedBackend(self, 5.0)
        self.backend = MemoryBackend(Settings(backend="memory", max_keys=2))
        self.is_cut = False
        self.loses_reply = False

    def close_writer(self) -> None:
        pass

    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        if self.is_cut:
            raise BackendUnavailable("the line is cut")
        receipts = self.backend.publish(drafts)
        if self.loses_reply:
            self.loses_reply = False
            raise AppendUncertain("the reply is lost")
        return receipts


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def emitter(line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emitter]:
    monkeypatch.setattr(sender, "FIRST_RETRY_SECONDS", 0.01)
    emitter = Emitter(line.guard, max_drafts=20)
    yield emitter
    line.is_cut = False
    emitter.retry_now()
    emitter.close(5)


def samples(families: Iterable[Metric]) -> Numbers:
    """Each sample by its name, without our namespace, and the values of its labels."""
    return {
        (sample.name.removeprefix("semantik_realtime_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def exported() -> Numbers:
    """What the emitters of this process export."""
    return samples(writing().collect())


def changes(before: Numbers, *names: str) -> Numbers:
    """How the metrics with these names have changed since ``before``."""
    return {
        sample: value - before.get(sample, 0)
        for sample, value in exported().items()
        if sample[0] in names and value != before.get(sample, 0)
    }


def test_each_draft_is_counted_once_by_its_outcome(emitter: Emitter, line: Line) -> None:
    before = exported()
    for number in range(3):
        emitter.emit(draft(number))
    assert emitter.flush(5)
    assert changes(before, "drafts_total") == {("drafts_total", "appended"): 3}

    line.loses_reply = True
    emitter.emit(draft(3))
    assert emitter.flush(5)
    assert changes(before, "drafts_total", "emitter_failures_total") == {
        ("drafts_total", "appended"): 3,
        ("drafts_total", "duplicate"): 1,
        ("emitter_failures_total",): 1,
    }

    # A third key is too many; a foreign owner's drafts, those after the end and those of an
    # outdated attempt are refused.
    emitter.emit(draft(4, key="2"))
    emitter.emit(draft(5, key="3"))
    emitter.emit(draft(6, owner="8"))
    emitter.emit(draft(6, attempt=2, terminal=True))
    emitter.emit(draft(7, attempt=2))
    emitter.emit(draft(8, attempt=1))
    assert emitter.flush(5)
    assert changes(before, "drafts_total") == {
        ("drafts_total", "appended"): 5,
        ("drafts_total", "duplicate"): 1,
        ("drafts_total", "foreign_owner"): 1,
        ("drafts_total", "rejected"): 1,
        ("drafts_total", "closed"): 1,
        ("drafts_total", "stale"): 1,
    }
    # A second collection changes nothing.
    assert changes(exported(), "drafts_total") == {}


def test_waiting_drafts_are_a_gauge_and_dropped_ones_a_counter(
    emitter: Emitter, line: Line
) -> None:
    before = exported()
    line.is_cut = True
    emitter.emit(draft(0, key="first"))
    wait_until(lambda: line.guard.fails_writes)
    waiting = changes(before, "spool_drafts", "spool_bytes")
    assert waiting["spool_drafts",] == 1
    assert waiting["spool_bytes",] > 50
    assert changes(before, "emitter_failures_total")["emitter_failures_total",] >= 1
    for number in range(50):
        emitter.emit(draft(number, key=str(number)))
    wait_until(lambda: emitter.stats.dropped)
    dropped = changes(before, "drafts_total")["drafts_total", "dropped"]
    assert dropped == emitter.stats.dropped

    line.is_cut = False
    emitter.retry_now()
    assert emitter.flush(5)
    assert changes(before, "spool_drafts", "spool_bytes") == {}
    assert sum(changes(before, "drafts_total").values()) == 51


def test_a_deleted_emitter_does_not_lower_the_counts(line: Line) -> None:
    before = exported()
    emitter = Emitter(line.guard)
    emitter.emit(draft(0))
    assert emitter.close(5)
    assert changes(before, "drafts_total") == {("drafts_total", "appended"): 1}
    del emitter
    assert changes(before, "drafts_total") == {("drafts_total", "appended"): 1}


# In other processes, because prometheus-client decides at its import whether it shares counts.


def run(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_process_forked_during_a_flush_does_not_hang_and_exports_its_own_counts(
    tmp_path: Path,
) -> None:
    script = """
        import os, sys, threading, time
        from semantik_realtime import metrics as module
        from semantik_realtime.emitter.emitter import Emitter
        from semantik_realtime.metrics import register, writing

        # A busy machine must not fail the test; switching threads often finds more races.
        module.FORK_SECONDS = 60
        sys.setswitchinterval(1e-5)
        emitter = Emitter(None)
        emitter.stats.appended = 1000
        metrics = writing()
        metrics.flush()
        going = True

        def flush():
            while going:
                emitter.stats.appended += 1
                metrics.flush()
                time.sleep(0)

        thread = threading.Thread(target=flush)
        thread.start()
        children = []
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                emitter.stats.appended += 7
                metrics.flush()
                metrics.flush()
                os._exit(0)
            children.append(pid)
        going = False
        thread.join()
        deadline = time.monotonic() + 60
        for pid in children:
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    for child in children:
                        os.kill(child, 9)
                    raise SystemExit("a child hangs")
                time.sleep(0.01)
        metrics.flush()
        for family in register([metrics]).collect():
            for sample in family.samples:
                if sample.labels.get("outcome") == "appended":
                    print(sample.value - emitter.stats.appended)
    """
    assert float(run(script, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))) == 40 * 7


def test_a_child_does_not_keep_the_port_of_a_worker_that_has_ended() -> None:
    script = """
        import os, sys
        from semantik_realtime.metrics import register, serve, writing

        serve(sys.argv[1], register([writing()]))
        if os.fork() == 0:
            os.write(1, b"born")
            sys.stdin.read()
        else:
            os._exit(0)
    """
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(script), f"127.0.0.1:{port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.wait(30) == 0
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.read(4) == b"born"
        with socket.create_server(("127.0.0.1", port)):
            pass
        worker.stdin.close()
        # The child has closed its end too, because it has ended.
        assert worker.stdout.read() == b""


# Real workers.


@pytest.fixture(scope="module")
def broker(server_url: Callable[[str], str]) -> Iterator[str]:
    import mirrored_app

    url = server_url("valkey")
    before = mirrored_app.app.conf.broker_url, mirrored_app.app.conf.result_backend
    mirrored_app.app.conf.update(broker_url=url, result_backend=url)
    yield url
    mirrored_app.app.conf.update(broker_url=before[0], result_backend=before[1])


def scrape(port: int) -> Numbers:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return samples(text_string_to_metric_families(text))


def written(worker: Worker, *jobs: str) -> int:
    """How many events the worker has appended to the topics of ``jobs`` and to their feed."""
    logs = [worker.log(topic) for topic in ("user:7", *(f"job:{job}" for job in jobs))]
    return sum(type != "job_queued" for log in logs for type in log.types)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_exports_what_all_its_processes_have_written(
    broker: str, tmp_path: Path, pool: str
) -> None:
    port = free_port()
    environment = {"SEMANTIK_REALTIME_WORKER_METRICS": f"127.0.0.1:{port}"}
    if pool == "prefork":
        (tmp_path / "shared").mkdir()
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path / "shared")
    with running(broker, Place("redis", broker), pool, tmp_path, **environment) as worker:
        wait_until(lambda: "drafts_total" in {name for name, *_ in scrape(port)})
        jobs = [worker.send("emit_many", 50) for _ in range(4)]
        for job in jobs:
            worker.wait_for(job, "completed")
        wait_until(
            lambda: scrape(port)["drafts_total", "appended"] == written(worker, *jobs) > 200, 15
        )
        wait_until(lambda: scrape(port)["spool_drafts",] == 0, 15)
        if pool == "prefork":
            # The children flush their last counts when they end.
            jobs.append(worker.send("emit_many", 50))
            worker.wait_for(jobs[-1], "completed")
            worker.process.send_signal(signal.SIGTERM)
            assert worker.process.wait(30) == 0
            left = MultiProcessCollector(None, str(tmp_path / "shared")).collect()
            assert samples(left)["drafts_total", "appended"] == written(worker, *jobs)
        assert "metrics: " not in worker.output


def test_a_worker_that_cannot_serve_its_metrics_logs_that_and_runs_tasks(
    broker: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = {"SEMANTIK_REALTIME_WORKER_METRICS": address}
        with running(broker, Place("redis", broker), "prefork", tmp_path, **environment) as worker:
            worker.wait_for(worker.send("add", 1, 2), "completed")
            wait_until(lambda: f"metrics: not served address={address}" in worker.output)
            assert "without PROMETHEUS_MULTIPROC_DIR no child is counted" in worker.output
            assert "Address already in use" in worker.output
