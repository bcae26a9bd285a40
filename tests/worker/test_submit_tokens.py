"""The token that `submit` returns, for whoever is to watch the job."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Celery, signals
from pydantic import SecretStr

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.topic_token import read_token
from semantik_realtime.errors import ConfigError
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.submit import submit
from semantik_realtime.worker.tracker import TaskTracker

KEY = "k" * 32

app = Celery("tokens_app", broker="memory://", set_as_current=False)


@app.task
def add(a: int, b: int) -> int:
    return a + b


def with_secret(settings: Settings, tracker: TaskTracker, secret: str | None) -> Runtime:
    key = SecretStr(secret) if secret else None
    changed = settings.model_copy(update={"topic_secrets": key})
    runtime = Runtime(changed, backend=MemoryBackend(changed))
    tracker.use(runtime)
    return runtime


@pytest.mark.parametrize("secret", [KEY, None])
def test_submit_returns_a_token_for_the_job_which_no_log_shows(
    settings: Settings, tracker: TaskTracker, secret: str | None
) -> None:
    runtime = with_secret(settings, tracker, secret)
    sent = submit(add, 1, owner="7", b=2)
    assert (sent.token is not None) == (secret is not None)
    if sent.token is not None:
        viewer, _ = read_token(sent.token, [KEY], time.time())
        assert viewer.may_watch(sent.topic, "7", [KEY])
        assert not viewer.may_watch(sent.topic, "8", [KEY])
        assert sent.token not in repr(sent)
    runtime.close()


def test_with_a_short_secret_nothing_is_submitted(settings: Settings, tracker: TaskTracker) -> None:
    runtime = with_secret(settings, tracker, "short")
    published: list[object] = []

    def note(**_: Any) -> None:
        published.append(None)

    signals.before_task_publish.connect(note)
    with pytest.raises(ConfigError, match="32 bytes"):
        submit(add, 1, owner="7", b=2)
    signals.before_task_publish.disconnect(note)
    assert published == []
    runtime.close()
