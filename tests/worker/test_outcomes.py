"""What the emitter logs of drafts that the backend refuses, however many they are."""

from __future__ import annotations

import pytest

from semantik_realtime.core.event import Draft, Outcome, Receipt
from semantik_realtime.emitter import outcomes
from semantik_realtime.emitter.outcomes import EmitterStats, Outcomes


def refuse(made: Outcomes, topic: str, outcome: Outcome) -> None:
    draft = Draft(topic=topic, type="job_queued", key="1", body=b"{}", owner="7")
    made.settle([draft], [Receipt(outcome)])


@pytest.mark.parametrize(
    ("outcome", "counter"),
    [
        (Outcome.TOO_MANY_KEYS, "rejected"),
        (Outcome.TOO_BIG, "rejected"),
        (Outcome.FOREIGN_OWNER, "foreign_owner"),
        (Outcome.REFUSED, "refused"),
    ],
)
def test_a_topic_that_refuses_ten_thousand_drafts_is_logged_once(
    outcome: Outcome, counter: str, caplog: pytest.LogCaptureFixture
) -> None:
    stats = EmitterStats()
    made = Outcomes(stats)
    for _ in range(10_000):
        refuse(made, "user:7", outcome)
    refuse(made, "user:8", outcome)
    assert [record.getMessage().split("topic=")[1][:6] for record in caplog.records] == [
        "user:7",
        "user:8",
    ]
    assert getattr(stats, counter) == 10_001


def test_two_reasons_of_one_topic_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = Outcomes(EmitterStats())
    refuse(made, "user:7", Outcome.TOO_BIG)
    refuse(made, "user:7", Outcome.TOO_MANY_KEYS)
    assert ["too_" in record.getMessage() for record in caplog.records] == [True, True]


def test_what_was_logged_is_forgotten_before_it_is_too_much(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outcomes, "MAX_REFUSALS", 3)
    made = Outcomes(EmitterStats())
    for number in range(10):
        refuse(made, f"job:{number}", Outcome.TOO_BIG)
    assert len(caplog.records) == 10
    assert len(made._refusals) <= 3
