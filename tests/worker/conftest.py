"""A runtime on the memory backend, and a look at what was appended."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from topic_log import Log, Reader, wait_until

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.realtime import Runtime
from semantik_realtime.worker import job as job_module


@pytest.fixture
def settings() -> Settings:
    return Settings(backend="memory", progress_seconds=0.0, feed_seconds=0.0)


@pytest.fixture
def backend(settings: Settings) -> MemoryBackend:
    return MemoryBackend(settings)


@pytest.fixture
def runtime(settings: Settings, backend: MemoryBackend) -> Iterator[Runtime]:
    runtime = Runtime(settings, backend=backend)
    yield runtime
    runtime.close()


@pytest.fixture
def reader(backend: MemoryBackend) -> Iterator[Reader]:
    reader = Reader(backend)
    yield reader
    reader.close()


@pytest.fixture
def log(runtime: Runtime, reader: Reader) -> Callable[[str], Log]:
    """The log of a topic, once all that was emitted is in it."""

    def look(topic: str) -> Log:
        wait_until(lambda: not runtime.emitter._paced)
        assert runtime.emitter.flush(5)
        return Log(reader, topic)

    return look


@pytest.fixture(autouse=True)
def _no_misuse() -> Iterator[None]:
    job_module.misuse.clear()
    yield
    job_module.misuse.clear()
