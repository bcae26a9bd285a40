"""The types of events that report a job's life, and the statuses that they set."""

import pytest
from histories import json_values
from hypothesis import given

from semantik_realtime.core.lifecycle import (
    END_STATUSES,
    END_TYPES,
    RESERVED_TYPES,
    STATUS_OF_TYPE,
    has_ended,
)
from semantik_realtime.core.topic import check_type


def test_the_types_and_statuses_are_those_of_the_protocol():
    assert STATUS_OF_TYPE == {
        "job_queued": "queued",
        "job_started": "running",
        "job_retrying": "retrying",
        "job_cancelling": "cancelling",
        "job_completed": "completed",
        "job_failed": "failed",
        "job_cancelled": "cancelled",
        "job_lost": "lost",
    }
    assert {"completed", "failed", "cancelled", "lost"} == END_STATUSES
    assert {f"job_{status}" for status in END_STATUSES} == END_TYPES


def test_a_task_cannot_emit_a_type_that_this_package_sends():
    assert {
        *STATUS_OF_TYPE,
        "job_progress",
        "job_deleted",
        "log",
        "events_dropped",
    } == RESERVED_TYPES
    for type in RESERVED_TYPES:
        check_type(type)


@pytest.mark.parametrize("type", STATUS_OF_TYPE)
def test_a_job_has_ended_exactly_if_its_last_event_is_an_end(type):
    assert has_ended({"status": STATUS_OF_TYPE[type]}) == (type in END_TYPES)


@given(json_values)
def test_any_other_status_is_no_end(status):
    assert has_ended({"status": status}) == (status in ["completed", "failed", "cancelled", "lost"])
    assert not has_ended({})
