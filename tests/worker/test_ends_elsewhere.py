"""The end of a job that the main process sends for one of its pool that is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from topic_log import Log

from semantik_realtime.clock import now_text
from semantik_realtime.config import Settings
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Draft
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.elsewhere import end_elsewhere
from semantik_realtime.worker.job_meta import JobMeta

ERROR = {"type": "WorkerLostError", "message": "it was killed"}


def a_draft(topic: str, type: str, status: str, attempt: int, *, terminal: bool = False) -> Draft:
    state = {"status": status, "attempt": attempt}
    return make_drafts(
        {topic: "7"},
        type,
        now_text(),
        "1",
        state=state,
        job="1",
        attempt=attempt,
        terminal=terminal,
    )[0]


@pytest.mark.every_backend(shares_storage=True)
@pytest.mark.parametrize("attempt", [1, 2])
def test_the_end_of_a_process_that_did_not_reach_the_feed_ends_its_attempt_there(
    settings: Settings, log: Callable[[str], Log], attempt: int
) -> None:
    # Of the configuration, so that it can read the job's state.
    runtime = Runtime(settings)
    emit = runtime.emitter.emit
    for topic in ("job:1", "user:7"):
        emit(a_draft(topic, "job_queued", "queued", 0))
    # It was killed between its calls for the two topics.
    emit(a_draft("job:1", "job_started", "running", attempt))
    assert runtime.emitter.flush(5)
    meta = JobMeta("1", "add", "7")
    end_elsewhere(runtime, meta, 1, True, "job_failed", error=ERROR, data=None)
    # A web server does so too, in case that the feed did not get it.
    emit(a_draft("user:7", "job_failed", "failed", attempt, terminal=True))
    runtime.close()
    for topic in ("job:1", "user:7"):
        assert log(topic).statuses[-1] == (attempt, "failed")
        assert log(topic).types.count("job_failed") == 1
