"""The application's own record of its jobs: one table, shared by its processes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from semantik_realtime.hookspecs import hookimpl

OWNER = "7"
CLOCK = "clock:0"
"""A topic whose events have the time of the monotonic clock, 40 a second."""


class Record:
    """A table of jobs, and the host's hooks over it."""

    def __init__(self, folder: Path) -> None:
        self.recalls: Counter[str] = Counter()
        """How often each topic was recalled."""
        self._database = sqlite3.connect(folder / "record", timeout=20, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, state TEXT, at REAL)"
        )

    def close(self) -> None:
        self._database.close()

    def write(self, job: str, state: dict[str, Any]) -> None:
        """Write the state of a job, with the time on the monotonic clock."""
        row = (job, json.dumps(state), time.monotonic())
        self._database.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?)", row)

    def queue(self, jobs: Iterable[str]) -> None:
        """Write ``jobs`` as queued."""
        for job in jobs:
            self.write(job, {"status": "queued", "attempt": 0})

    def rows(self) -> dict[str, tuple[dict[str, Any], float]]:
        """Return each job's state, and when it was written."""
        rows = self._database.execute("SELECT id, state, at FROM jobs")
        return {job: (json.loads(state), at) for job, state, at in rows}

    @hookimpl
    def recall(self, topic: str) -> dict[str, dict[str, Any]] | None:
        self.recalls[topic] += 1
        return self._states(topic)

    @hookimpl
    def authorize(self, user: str, topic: str, owner: str | None) -> bool | None:
        """Allow the one user every topic, also while the backend knows no owner."""
        if owner is not None or user != OWNER:
            return None
        return topic in (CLOCK, f"user:{OWNER}") or self._states(topic) is not None

    def _states(self, topic: str) -> dict[str, dict[str, Any]] | None:
        kind, _, ident = topic.partition(":")
        if topic == f"user:{OWNER}":
            return {job: state for job, (state, _) in self.rows().items()}
        found = self._database.execute("SELECT state FROM jobs WHERE id = ?", (ident,)).fetchone()
        return {ident: json.loads(found[0])} if kind == "job" and found else None
