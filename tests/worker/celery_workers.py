"""A Celery worker in a process of its own, and the topics that it writes to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from topic_log import Log, Reader, wait_until

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import Settings

HERE = Path(__file__).parent
POOLS = ("prefork", "threads", "solo", "gevent", "eventlet")


class Place(NamedTuple):
    """Where workers send the events of their tasks: a row of the backend matrix."""

    backend: str
    url: str


class Worker:
    """One ``celery worker``, its log, and the topics it wrote to."""

    def __init__(
        self, broker: str, place: Place, pool: str, directory: Path, prefix: str, **environment: str
    ):
        self.settings = Settings(backend=place.backend, url=place.url, prefix=prefix)
        self.log_path = directory / f"{pool}.log"
        self.queue = prefix
        self.pool = pool
        self.pool = pool
        self._environment = {
            **os.environ,
            "REDIS_URL": broker,
            "SEMANTIK_REALTIME_BACKEND": place.backend,
            "SEMANTIK_REALTIME_URL": place.url,
            "SEMANTIK_REALTIME_PREFIX": prefix,
            "PYTHONPATH": str(HERE),
            "TEST_QUEUE": prefix,
            **environment,
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "mirrored_app", "worker"),
                    *("--pool", pool, "--concurrency", environment.get("TEST_CONCURRENCY", "2")),
                    *("--loglevel", "info"),
                    *("-Q", prefix, "-n", f"{prefix}@here"),
                    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
                ],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
            )
        try:
            wait_until(self._is_ready, 60)
        except AssertionError:
            self.stop()
            raise AssertionError(self.output) from None

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.output
        return f"{self.queue}@here ready." in self.output

    @property
    def output(self) -> str:
        return self.log_path.read_text(errors="replace")

    @cached_property
    def reader(self) -> Reader:
        return Reader(load_backend(self.settings))

    def stop(self) -> None:
        if "reader" in vars(self):
            self.reader.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def send(self, name: str, *args: Any, owner: str | None = "7", **options: Any) -> str:
        """Send a task with plain Celery; return its id."""
        headers = ({} if owner is None else {"realtime_owner": owner}) | options.pop("headers", {})
        result = self.app.send_task(
            f"mirrored_app.{name}", args, queue=self.queue, headers=headers, **options
        )
        return str(result.id)

    @cached_property
    def app(self) -> Any:
        """The application that sends the tasks; may be replaced."""
        import mirrored_app

        return mirrored_app.app

    def log(self, topic: str) -> Log:
        return Log(self.reader, topic)

    def wait_for(self, job_id: str, status: str, seconds: float = 20) -> Log:
        """Return the log of a job when its last event has ``status``."""
        log = self.log(f"job:{job_id}")
        try:
            wait_until(lambda: log.events and log.state["status"] == status, seconds)
        except AssertionError:
            raise AssertionError(f"{log.statuses}\n{self.output[-3000:]}") from None
        return log


@contextlib.contextmanager
def running(
    broker: str,
    place: Place,
    pool: str,
    directory: Path,
    *,
    prefix: str | None = None,
    **environment: str,
) -> Iterator[Worker]:
    prefix = prefix or f"q{uuid.uuid4().hex[:8]}"
    worker = Worker(broker, place, pool, directory, prefix, **environment)
    try:
        yield worker
    finally:
        worker.stop()
