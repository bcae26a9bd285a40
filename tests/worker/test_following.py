"""How many workflows a process follows."""

from __future__ import annotations

import pytest

from semantik_realtime.worker import workflow
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.members import Member
from semantik_realtime.worker.workflow import WorkflowFollower


def test_a_workflow_without_a_task_here_makes_room_and_a_full_process_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workflow, "MAX_FOLLOWED", 2)
    follower = WorkflowFollower(lambda: None)

    def receive(*names: str) -> list[str]:
        for name in names:
            meta = JobMeta(f"task of {name}", owner="7", member=Member(name, {"n": 0}))
            follower._news.append((meta, 1))
        follower._take_news()
        return sorted(follower._followed)

    assert receive("a", "b") == ["a", "b"]
    follower._news.append(("a", -1))
    follower._take_news()
    # It has been read since.
    follower._followed["a"].has_news = False
    assert receive("c") == ["b", "c"]
    assert receive("d", "e") == ["b", "c"]
    assert caplog.text.count("workflow: not followed job=d") == 1
    assert "job=e" not in caplog.text
