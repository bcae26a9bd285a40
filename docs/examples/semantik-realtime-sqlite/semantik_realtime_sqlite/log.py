"""One topic's log, within a transaction."""

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

MAX_PRODUCERS = 256
TABLES = ("topics", "events", "states", "standings", "producers")


def forget(db: sqlite3.Connection, topic: str) -> None:
    """Remove whatever belongs to ``topic``."""
    for table in TABLES:
        db.execute(f"DELETE FROM {table} WHERE topic = ?", [topic])  # noqa: S608


class Log:
    """What a writer knows of a topic; a topic that has expired is begun anew.

    Call `save` before the transaction ends.
    """

    def __init__(
        self, db: sqlite3.Connection, topic: str, settings: Settings, now_seconds: float
    ) -> None:
        self._db = db
        self._topic = topic
        self._settings = settings
        self._now = now_seconds
        row = db.execute(
            "SELECT epoch, offset, chain, owner, expires_at, deleted FROM topics WHERE topic = ?",
            [topic],
        ).fetchone()
        if row is None or row[4] <= now_seconds:
            forget(db, topic)
            row = (secrets.token_hex(5), 0, 0, None, 0.0, 0)
        self.epoch, self.offset, self.chain, self.owner, self._expires_at, deleted = row
        self.is_deleted = bool(deleted)
        self._stood: str | None = None
        """The job whose standing changed last."""

    @property
    def cursor(self) -> Cursor:
        """Where the log ends."""
        return Cursor(self.epoch, self.offset, self.chain)

    def append(self, draft: Draft) -> Receipt:
        """Append ``draft``, or say why not."""
        if self.is_deleted:
            return Receipt(Outcome.CLOSED)
        if draft.number <= self._last_number(draft.producer):
            return Receipt(Outcome.DUPLICATE, self._first_position(draft))
        if len(draft.body) > self._settings.max_event_bytes:
            return Receipt(Outcome.TOO_BIG)
        standing: fence.AttemptState | None = None
        if draft.job is not None:
            known = self._standing(draft.job)
            verdict = fence.check_fence(
                known or fence.AttemptState(), draft.attempt, draft.terminal
            )
            if isinstance(verdict, fence.Refusal):
                return Receipt(Outcome(verdict.value))
            standing = verdict if verdict != known else None
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
        if draft.job is not None and standing is not None:
            self._stand(draft.job, standing.attempt, draft.terminal)
        self._db.execute(
            "INSERT OR REPLACE INTO producers VALUES (?, ?, ?, ?)",
            [self._topic, draft.producer, draft.number, self.offset],
        )
        self.owner = self.owner or draft.owner
        if draft.terminal and self._topic == f"job:{draft.job}":
            self._expires_at = self._now + self._settings.grace_seconds
        else:
            self._expires_at = self._now + self._settings.retention_seconds
        return Receipt(Outcome.APPENDED, self.cursor)

    def claim(self, job: str, token: str) -> int:
        """The number of a new attempt, the same for the same ``token``; 0 if deleted."""
        if self.is_deleted:
            return 0
        row = self._db.execute(
            "SELECT attempt, token FROM standings WHERE topic = ? AND job = ?", [self._topic, job]
        ).fetchone()
        attempt, known_token = row or (0, "")
        if known_token == token:
            return int(attempt)
        self._stand(job, attempt + 1, False, token)
        self._expires_at = self._now + self._settings.retention_seconds
        return int(attempt) + 1

    def delete(self) -> bool:
        """Forget everything but the deletion itself; was anything known?"""
        was_known = self.offset > 0 and not self.is_deleted
        forget(self._db, self._topic)
        self._db.execute(
            "INSERT INTO events (topic, offset, chain, producer, number) VALUES (?, 0, 0, '', 0)",
            [self._topic],
        )
        self.offset, self.chain, self.owner, self.is_deleted = 0, 0, None, True
        self._expires_at = self._now + self._settings.grace_seconds
        return was_known

    def save(self) -> None:
        """Write where the log ends, and drop what it keeps no longer."""
        self._db.execute(
            "INSERT OR REPLACE INTO topics VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                self._topic,
                self.epoch,
                self.offset,
                self.chain,
                self.owner,
                self._expires_at,
                self.is_deleted,
            ],
        )
        self._db.execute(
            "DELETE FROM events WHERE topic = ? AND offset <= ?",
            [self._topic, self.offset - self._settings.retention_events],
        )
        self._db.execute(
            "DELETE FROM producers WHERE topic = ?1 AND producer IN (SELECT producer "
            "FROM producers WHERE topic = ?1 ORDER BY wrote_at DESC LIMIT -1 OFFSET ?2)",
            [self._topic, MAX_PRODUCERS],
        )

        if self._stood is not None:
            # Jobs without a state (deleted, or only claimed) take no key, so no key ever makes
            # room for them: the oldest go.
            self._db.execute(
                "DELETE FROM standings WHERE topic = ?1 AND job IN (SELECT job "
                "FROM standings LEFT JOIN states ON states.topic = ?1 AND key = job "
                "WHERE standings.topic = ?1 AND key IS NULL "
                "ORDER BY job = ?2 DESC, abs(ended_at) DESC LIMIT -1 OFFSET ?3)",
                [self._topic, self._stood, self._settings.max_keys],
            )

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

    def _standing(self, job: str) -> fence.AttemptState | None:
        row = self._db.execute(
            "SELECT attempt, ended_at FROM standings WHERE topic = ? AND job = ?",
            [self._topic, job],
        ).fetchone()
        return fence.AttemptState(row[0], row[1] > 0) if row else None

    def _stand(self, job: str, attempt: int, ended: bool, token: str | None = None) -> None:
        place = self.offset if ended else -self.offset
        self._db.execute(
            "INSERT INTO standings VALUES (?1, ?2, ?3, ?4, coalesce(?5, '')) ON CONFLICT DO "
            "UPDATE SET attempt = ?3, ended_at = ?4, token = coalesce(?5, token)",
            [self._topic, job, attempt, place, token],
        )
        self._stood = job

    def _has_room_for(self, key: str) -> bool:
        """Whether ``key`` may have a state; if need be, jobs that ended lose theirs."""
        known = self._db.execute(
            "SELECT 1 FROM states WHERE topic = ? AND key = ?", [self._topic, key]
        ).fetchone()
        if known or self._count_states() < self._settings.max_keys:
            return True
        # A quarter at once, longest ended first: a full topic must not pay this for every key.
        ended = self._db.execute(
            "SELECT job FROM standings JOIN states ON states.topic = ?1 AND key = job "
            "WHERE standings.topic = ?1 AND ended_at > 0 ORDER BY ended_at LIMIT ?2",
            [self._topic, max(1, self._settings.max_keys // 4)],
        ).fetchall()
        for (job,) in ended:
            self._db.execute("DELETE FROM states WHERE topic = ? AND key = ?", [self._topic, job])
            self._db.execute(
                "DELETE FROM standings WHERE topic = ? AND job = ?", [self._topic, job]
            )
        return self._count_states() < self._settings.max_keys

    def _count_states(self) -> int:
        [count] = self._db.execute(
            "SELECT count(*) FROM states WHERE topic = ?", [self._topic]
        ).fetchone()
        return int(count)
