"""What a page of the compatibility wire shows and reports in the end, whatever the log holds.

The page is the kind that the wire is for: it applies each message in order,
believes its status and its type, and reports each message of an end to its user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from publisher import one_draft

from semantik_realtime.core.event import Cursor, Draft, Event, StateChange, link, with_offset
from semantik_realtime.core.fence import AttemptState, Refusal, check_fence
from semantik_realtime.core.lifecycle import END_STATUSES, END_TYPES, STATUS_OF_TYPE
from semantik_realtime.core.words import IMPLIED_STATUS, LIFE_TYPES, Words
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.wires.compat import CompatWire
from semantik_realtime.web.wires.wire import Outgoing, Sync

FINAL = END_STATUSES | {"deleted"}
WORDS = Words(
    {
        "operation_started": "job_started",
        "operation_failed": "job_failed",
        "success": "completed",
        "processing": "running",
    }
)


class Log:
    """A topic: its newest events, and the last event with a state of each key."""

    def __init__(self, topic: str, *, keeps: int) -> None:
        self.topic = topic
        self._keeps = keeps
        self._attempts: dict[str, AttemptState] = {}
        self.events: list[Event] = []
        self.states: dict[str, bytes] = {}
        self.ends: dict[str, int] = {}
        """How many events have an end of each job."""

    @property
    def cursor(self) -> Cursor:
        last = self.events[-1] if self.events else Event(0, 0, b"")
        return Cursor("e", last.offset, last.chain)

    def append(self, draft: Draft) -> None:
        """Append a draft, unless the fence refuses it."""
        if draft.job is not None:
            attempt = self._attempts.get(draft.job, AttemptState())
            verdict = check_fence(attempt, draft.attempt, draft.terminal)
            if isinstance(verdict, Refusal):
                return
            self._attempts[draft.job] = verdict
        cursor = self.cursor
        json = with_offset(draft.body, cursor.offset + 1)
        self.events.append(Event(cursor.offset + 1, link(cursor.chain, draft.digest), json))
        if draft.change is StateChange.SET:
            self.states[draft.key] = json
        elif draft.change is StateChange.DROP:
            self.states.pop(draft.key, None)
        if draft.change and WORDS.status_of(self.state(draft.key).get("status")) in END_STATUSES:
            self.ends[draft.key] = self.ends.get(draft.key, 0) + 1

    def state(self, job: str) -> dict[str, Any]:
        event = self.states.get(job)
        return {} if event is None else msgspec.json.decode(event)["state"]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.cursor, states=dict(self.states), events=self.events[-self._keeps :])

    def since(self, offset: int) -> Outgoing:
        return Outgoing(self.cursor, self.events[offset:], 0, b"", "", None)


class Page:
    """Applies every message in order, and reports each one that has an end."""

    def __init__(self, topic: str, words: Words) -> None:
        kind, _, ident = topic.partition(":")
        self._own = ident if kind == "job" else None
        self._words = words
        self.statuses: dict[str, str] = {}
        self.reports: dict[str, list[str]] = {}
        self.last_id: str | None = None
        self.last_reports: dict[str, tuple[str, object]] = {}
        """The newest report of this connection of each job that has ended."""

    def apply(self, message: Mapping[str, Any]) -> None:
        self.last_id = message["id"] or self.last_id
        data, type = message["data"], self._words.type_of(message["type"])
        job = self._own or data.get("job_id")
        if job is None:
            return
        status = self._words.status_of(data.get("status"))
        implied = IMPLIED_STATUS.get(type)
        if status is not None:
            fits = status not in FINAL if type == "job_progress" else implied in (None, status)
            assert fits, "a page that reads types shows something else"
        elif type == "job_progress" and self.statuses.get(job) in FINAL:
            implied = "running"
        status = status or implied
        if status is None:
            return
        self.statuses[job] = status
        if status not in END_STATUSES:
            self.last_reports.pop(job, None)
        else:
            report = (status, data.get("attempt"))
            assert self.last_reports.get(job) != report, "reported again"
            self.last_reports[job] = report
            self.reports.setdefault(job, []).append(status)


class Connection:
    """One connection of a page, of which it may get the first messages only."""

    def __init__(self, log: Log, page: Page, words: Words, history: int) -> None:
        after = Cursor.parse(page.last_id) if page.last_id else None
        self._wire = CompatWire(log.topic, lambda: "now", after, words=words, history=history)
        self._log, self._page = log, page
        page.last_reports.clear()
        self._offset = 0
        self.budget = 1_000_000
        """How many more messages the network delivers."""
        self.resync()

    def resync(self) -> None:
        self._offset = self._log.cursor.offset
        self._deliver(self._wire.sync(Sync(self._log.topic, None, self._log.snapshot())))

    def follow(self) -> None:
        waiting = [(self._log.topic, self._log.since(self._offset))]
        self._offset = self._log.cursor.offset
        self._deliver(self._wire.events(waiting))

    def outage(self) -> None:
        self._deliver(self._wire.degraded("now"))
        self._deliver(self._wire.restored())

    def _deliver(self, messages: Sequence[str]) -> None:
        for text in messages[: self.budget]:
            self._page.apply(msgspec.json.decode(text))
        self.budget = max(0, self.budget - len(messages))


def a_draft(
    topic: str, type: str, key: str, state: Any, status: str, attempt: int, data: Any, fenced: bool
) -> Draft:
    if isinstance(state, dict):
        # A type of a job's life sets the status, as `publish` has it; a child's is its own.
        state = {"status": STATUS_OF_TYPE.get(type, status), "attempt": attempt, **state}
    elif state is msgspec.UNSET and topic == "user:7" and type in IMPLIED_STATUS:
        # Its type is all that a feed knows of such a job.
        type = "note"
    job = topic.partition(":")[2] if topic.startswith("job:") else key
    return one_draft(
        topic,
        type,
        key=key,
        state=state,
        data=data,
        job=job if fenced else None,
        attempt=attempt if fenced else None,
        terminal=fenced and key == job and type in END_TYPES,
    )


def drafts_of(topic: str) -> st.SearchStrategy[Draft]:
    return st.builds(
        a_draft,
        topic=st.just(topic),
        type=st.sampled_from([*sorted(LIFE_TYPES - {"job_deleted"}), "note", "file_failed", "log"]),
        key=st.sampled_from(["1", "2", "3"]),
        state=st.just({}) | st.sampled_from([{"message": "m"}, msgspec.UNSET, None]),
        status=st.sampled_from(["running", "processing", "success", "failed", "queued"]),
        attempt=st.integers(1, 3),
        data=st.sampled_from([None, {"status": "processing"}, {"error": "e", "status": "failed"}]),
        fenced=st.booleans(),
    )


STEPS = st.lists(
    st.sampled_from(["follow", "resync", "outage", "reconnect", "reload", "cut"])
    | st.integers(1, 6),
    max_size=12,
)


@given(st.data(), st.sampled_from(["job:1", "user:7"]), st.sampled_from([0, 100]), STEPS)
def test_a_page_shows_the_state_in_the_end_and_reports_each_end_once(
    draw: st.DataObject, topic: str, history: int, steps: list[str | int]
) -> None:
    words = draw.draw(st.sampled_from([Words(), WORDS]))
    log = Log(topic, keeps=draw.draw(st.integers(1, 20)))
    for draft in draw.draw(st.lists(drafts_of(topic), max_size=15)):
        log.append(draft)
    page = Page(topic, words)
    connection = Connection(log, page, words, history)
    for step in [*steps, "reconnect"]:
        if isinstance(step, int):
            for draft in draw.draw(st.lists(drafts_of(topic), min_size=step, max_size=step)):
                log.append(draft)
        elif step == "reload":
            page = Page(topic, words)
            connection = Connection(log, page, words, history)
        elif step == "reconnect":
            connection = Connection(log, page, words, history)
        elif step == "cut":
            connection.budget = draw.draw(st.integers(0, 5))
        else:
            getattr(connection, step)()
    for job in ["1"] if topic == "job:1" else ["1", "2", "3"]:
        state, shown = log.state(job), page.statuses.get(job)
        status = words.status_of(state.get("status"))
        if state:
            # A feed does not show what ended before the page was loaded.
            hidden = {None} if status in FINAL and topic == "user:7" else set()
            assert shown in {status} | hidden, (job, shown, state)
        elif topic == "job:1":
            # On a feed, the log may no longer have the deletion.
            assert shown in {"unknown", "deleted"}, (job, shown)
        reports = page.reports.get(job, [])
        assert len(reports) <= log.ends.get(job, 0), (job, reports)
