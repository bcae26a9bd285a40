"""The log of one topic, within a write transaction."""

from __future__ import annotations

import secrets
import sqlite3

from semantik_realtime.config import Settings
from semantik_realtime.core import fence
from semantik_realtime.core.event import (
    Cursor,
    Draft,
    Outcome,
    Receipt,
    StateChange,
    link,
    with_offset,
)
from semantik_realtime.core.limits import KEPT_PRODUCERS, MAX_PRODUCERS, PRODUCER_SECONDS
from semantik_realtime.core.ownership import OwnerChange, check_owner
from semantik_realtime.core.retention import expires_at, own_job

TABLES = ("topics", "events", "states", "attempts", "producers")


def delete_rows(db: sqlite3.Connection, topic: str) -> None:
    """Remove everything that is stored of ``topic``."""
    for table in TABLES:
        db.execute(f"DELETE FROM {table} WHERE topic = ?", [topic])  # noqa: S608


class TopicLog:
    """A topic's log for one write transaction. Call `save` before the transaction ends.

    If the topic is unknown or has expired, a new epoch begins.
    """

    def __init__(self, db: sqlite3.Connection, topic: str, settings: Settings, now: float) -> None:
        self._db = db
        self._topic = topic
        self._settings = settings
        self._now = now
        """Seconds since 1970."""
        row = db.execute(
            "SELECT epoch, offset, chain, owner, due_at, expires_at, deleted "
            "FROM topics WHERE topic = ?",
            [topic],
        ).fetchone()
        if row is None or row[5] <= now:
            delete_rows(db, topic)
            row = (secrets.token_hex(5), 0, 0, None, None, 0.0, 0)
        # As of the last append; written to the topic's row by `save`.
        self.epoch, self.offset, self.chain, self.owner, due_at, self._expires_at, deleted = row
        self.is_deleted = bool(deleted)
        self._due_at: float | None = due_at
        """When the topic's own job is to start, if a draft said so."""
        self._changed = self._ends = False
        """Whether something was appended or claimed, and whether that ended the own job."""
        self._has_new_producer = False
        """Whether a draft was appended of a producer that was not known."""
        self._changed_job: str | None = None
        """The job whose attempt changed last in this transaction; None if none did."""
        self._stale: set[tuple[str | None, int | None]] = set()
        """The job and attempt of the drafts that begin an attempt and are stale."""

    @property
    def cursor(self) -> Cursor:
        """The position after the last event."""
        return Cursor(self.epoch, self.offset, self.chain)

    def append(self, draft: Draft) -> Receipt:
        """Append ``draft``, unless the fence refuses it."""
        if self.is_deleted:
            return Receipt(Outcome.CLOSED)
        if (draft.job, draft.attempt) in self._stale:
            return Receipt(Outcome.STALE)
        last_number = self._last_number(draft.producer)
        if draft.number <= last_number:
            return Receipt(Outcome.DUPLICATE, self._first_position(draft))
        owner_change = check_owner(self.owner, self.offset, draft.owner)
        if owner_change is OwnerChange.FOREIGN:
            return Receipt(Outcome.FOREIGN_OWNER)
        if len(draft.body) > self._settings.max_event_bytes:
            return Receipt(Outcome.TOO_BIG)
        changed: fence.AttemptState | None = None
        if draft.job is not None:
            known = self._attempt_state(draft.job)
            verdict = fence.check_fence(
                known or fence.AttemptState(), draft.attempt, draft.terminal, draft.begins
            )
            if isinstance(verdict, fence.Refusal):
                if draft.begins and verdict is fence.Refusal.STALE:
                    self._stale.add((draft.job, draft.attempt))
                return Receipt(Outcome(verdict.value))
            changed = verdict if verdict != known else None
        if owner_change is OwnerChange.BEGIN:
            self._begin_again()
        if draft.change is StateChange.SET and not self._has_room_for(draft.key):
            return Receipt(Outcome.TOO_MANY_KEYS)
        self.offset += 1
        self.chain = link(self.chain, draft.digest)
        json = with_offset(draft.body, self.offset)
        self._db.execute(
            "INSERT INTO events (topic, offset, chain, producer, number, json) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [self._topic, self.offset, self.chain, draft.producer, draft.number, json],
        )
        if draft.change is StateChange.SET:
            self._db.execute(
                "INSERT OR REPLACE INTO states VALUES (?, ?, ?)", [self._topic, draft.key, json]
            )
        elif draft.change is StateChange.DROP:
            self._db.execute(
                "DELETE FROM states WHERE topic = ? AND key = ?", [self._topic, draft.key]
            )
        if draft.job is not None and changed is not None:
            self._set_attempt(draft.job, changed.attempt, draft.terminal)
        self._db.execute(
            "INSERT OR REPLACE INTO producers VALUES (?, ?, ?, ?)",
            [self._topic, draft.producer, draft.number, self._now],
        )
        self._has_new_producer |= last_number == 0
        self.owner = self.owner or draft.owner
        if draft.due_at is not None:
            self._due_at = max(self._due_at or 0.0, draft.due_at)
        self._changed = True
        is_own = draft.job is not None and draft.job == own_job(self._topic)
        self._ends = draft.terminal and is_own
        return Receipt(Outcome.APPENDED, self.cursor)

    def claim(self, job: str, token: str, owner: str | None) -> int:
        """See `semantik_realtime.hookspecs.BackendSpec.claim`."""
        if self.is_deleted:
            return 0
        owner_change = check_owner(self.owner, self.offset, owner)
        if owner_change is OwnerChange.FOREIGN:
            return -1
        if owner_change is OwnerChange.FIRST:
            self.owner = owner
        row = self._db.execute(
            "SELECT attempt, token FROM attempts WHERE topic = ? AND job = ?", [self._topic, job]
        ).fetchone()
        attempt, known_token = row or (0, "")
        if known_token == token:
            return int(attempt)
        self._set_attempt(job, attempt + 1, False, token)
        self._changed = True
        return int(attempt) + 1

    def delete(self) -> bool:
        """Remove everything but the deletion itself; return True if the topic was known."""
        was_known = self.offset > 0 and not self.is_deleted
        delete_rows(self._db, self._topic)
        self._db.execute(
            "INSERT INTO events (topic, offset, chain, producer, number) VALUES (?, 0, 0, '', 0)",
            [self._topic],
        )
        self.offset, self.chain, self.owner, self.is_deleted = 0, 0, None, True
        self._expires_at = self._now + self._settings.grace_seconds
        return was_known

    def save(self) -> None:
        """Write the topic's row, and remove what is over the limits."""
        if self._changed:
            self._expires_at = expires_at(
                self._now,
                self._settings.retention,
                ends=self._ends,
                is_open=self._is_open(),
                due_at=self._due_at,
            )
        self._db.execute(
            "INSERT OR REPLACE INTO topics VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                self._topic,
                self.epoch,
                self.offset,
                self.chain,
                self.owner,
                self._due_at,
                self._expires_at,
                self.is_deleted,
            ],
        )
        self._db.execute(
            "DELETE FROM events WHERE topic = ? AND offset <= ?",
            [self._topic, self.offset - self._settings.retention_events],
        )
        if self._has_new_producer:
            for count, before in (
                (KEPT_PRODUCERS, self._now - PRODUCER_SECONDS),
                (MAX_PRODUCERS, self._now),
            ):
                self._db.execute(
                    "DELETE FROM producers WHERE topic = ?1 AND wrote_at <= ?3 AND producer IN "
                    "(SELECT producer FROM producers WHERE topic = ?1 "
                    "ORDER BY wrote_at DESC LIMIT -1 OFFSET ?2)",
                    [self._topic, count, before],
                )
        if self._changed_job is not None:
            # Jobs without a state (deleted, or only claimed) have no key, so `_has_room_for` never
            # removes them: here the oldest are removed.
            self._db.execute(
                "DELETE FROM attempts WHERE topic = ?1 AND job IN (SELECT job "
                "FROM attempts LEFT JOIN states ON states.topic = ?1 AND key = job "
                "WHERE attempts.topic = ?1 AND key IS NULL "
                "ORDER BY job = ?2 DESC, abs(ended_at) DESC LIMIT -1 OFFSET ?3)",
                [self._topic, self._changed_job, self._settings.max_keys],
            )

    def _is_open(self) -> bool:
        """Return True if the topic's own job has a state and has not ended."""
        own = own_job(self._topic)
        row = self._db.execute(
            "SELECT coalesce(ended_at, 0) FROM states LEFT JOIN attempts "
            "ON attempts.topic = ?1 AND job = key WHERE states.topic = ?1 AND key = ?2",
            [self._topic, own],
        ).fetchone()
        return row is not None and row[0] <= 0

    def _begin_again(self) -> None:
        """Begin a new epoch without events and states; the fence stays."""
        for table in ("events", "states"):
            self._db.execute(f"DELETE FROM {table} WHERE topic = ?", [self._topic])  # noqa: S608
        self.epoch, self.offset, self.chain = secrets.token_hex(5), 0, 0

    def _last_number(self, producer: str) -> int:
        row = self._db.execute(
            "SELECT number FROM producers WHERE topic = ? AND producer = ?",
            [self._topic, producer],
        ).fetchone()
        return int(row[0]) if row else 0

    def _first_position(self, draft: Draft) -> Cursor | None:
        row = self._db.execute(
            "SELECT offset, chain FROM events WHERE topic = ? AND producer = ? AND number = ?",
            [self._topic, draft.producer, draft.number],
        ).fetchone()
        return Cursor(self.epoch, *row) if row else None

    def _attempt_state(self, job: str) -> fence.AttemptState | None:
        row = self._db.execute(
            "SELECT attempt, ended_at FROM attempts WHERE topic = ? AND job = ?",
            [self._topic, job],
        ).fetchone()
        return fence.AttemptState(row[0], row[1] > 0) if row else None

    def _set_attempt(self, job: str, attempt: int, ended: bool, token: str | None = None) -> None:
        place = self.offset if ended else -self.offset
        self._db.execute(
            "INSERT INTO attempts VALUES (?1, ?2, ?3, ?4, coalesce(?5, '')) ON CONFLICT DO "
            "UPDATE SET attempt = ?3, ended_at = ?4, token = coalesce(?5, token)",
            [self._topic, job, attempt, place, token],
        )
        self._changed_job = job

    def _has_room_for(self, key: str) -> bool:
        """Return True if ``key`` may have a state; removes ended jobs to make room."""
        known = self._db.execute(
            "SELECT 1 FROM states WHERE topic = ? AND key = ?", [self._topic, key]
        ).fetchone()
        if known or self._count_states() < self._settings.max_keys:
            return True
        # A quarter at once, longest ended first: in a full topic it is too slow for every new key.
        ended = self._db.execute(
            "SELECT job FROM attempts JOIN states ON states.topic = ?1 AND key = job "
            "WHERE attempts.topic = ?1 AND ended_at > 0 ORDER BY ended_at LIMIT ?2",
            [self._topic, max(1, self._settings.max_keys // 4)],
        ).fetchall()
        for (job,) in ended:
            self._db.execute("DELETE FROM states WHERE topic = ? AND key = ?", [self._topic, job])
            self._db.execute("DELETE FROM attempts WHERE topic = ? AND job = ?", [self._topic, job])
        return self._count_states() < self._settings.max_keys

    def _count_states(self) -> int:
        [count] = self._db.execute(
            "SELECT count(*) FROM states WHERE topic = ?", [self._topic]
        ).fetchone()
        return int(count)
