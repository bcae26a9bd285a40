"""An application's own words for the types and the statuses of a job's life.

The log and the native wire have the protocol's words. `publish` translates
into them, the compatibility wire out of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semantik_realtime.core.lifecycle import STATUS_OF_TYPE
from semantik_realtime.core.topic import check_type
from semantik_realtime.errors import EventError

DELETED = "deleted"
"""The status in which the compatibility wire shows a deleted job."""
IMPLIED_STATUS: Mapping[str, str] = {**STATUS_OF_TYPE, "job_deleted": DELETED}
"""The status that each type of a job's life implies."""
LIFE_TYPES = frozenset({*IMPLIED_STATUS, "job_progress"})
_STATUSES = frozenset(IMPLIED_STATUS.values())


class Words:
    """The words of one application, each with the protocol's.

    >>> words = Words({"operation_completed": "job_completed", "processing": "running"})
    >>> words.type_of("operation_completed"), words.shown("running"), words.shown("job_failed")
    ('job_completed', 'processing', 'job_failed')

    Several words may mean the same; of these the first is shown.

    Args:
        pairs: the protocol's word of each word of the application.

    Raises:
        EventError: a word is none of the protocol's, or the application's cannot be used.
    """

    def __init__(self, pairs: Mapping[str, str] | None = None) -> None:
        self._types: dict[str, str] = {}
        self._statuses: dict[str, str] = {}
        self._shown: dict[str, str] = {}
        for theirs, ours in (pairs or {}).items():
            if not theirs or theirs in LIFE_TYPES or theirs in _STATUSES:
                raise EventError(f"{theirs!r} is empty, or has its own meaning in the protocol")
            if ours in LIFE_TYPES:
                self._types[check_type(theirs)] = ours
            elif ours in _STATUSES:
                self._statuses[theirs] = ours
            else:
                known = ", ".join(sorted(LIFE_TYPES | _STATUSES))
                raise EventError(f"{theirs}={ours}: {ours!r} is none of {known}")
            self._shown.setdefault(ours, theirs)

    def type_of(self, type: Any) -> Any:
        """Return the protocol's type of an application's; any other value as it is."""
        return self._types.get(type, type) if isinstance(type, str) else type

    def status_of(self, status: Any) -> Any:
        """Return the protocol's status of an application's; any other value as it is."""
        return self._statuses.get(status, status) if isinstance(status, str) else status

    def shown(self, word: Any) -> Any:
        """Return the application's word of a type or a status; any other value as it is."""
        return self._shown.get(word, word) if isinstance(word, str) else word

    def translate(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return ``state`` with the protocol's status."""
        status = state.get("status")
        ours = self.status_of(status)
        return state if ours is status else {**state, "status": ours}
