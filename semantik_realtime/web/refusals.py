"""One log line for each cause of a refusal: clients learn no details, and a developer must."""

from __future__ import annotations

import logging
from collections import defaultdict

logger = logging.getLogger(__name__)

MAX_CAUSES = 20
"""How many causes of one kind a process logs. A stranger can bring any number of them."""


class RefusalLog:
    """The causes that were logged.

    Args:
        cookie: the name of the cookie that has the token.
    """

    def __init__(self, cookie: str) -> None:
        self._cookie = cookie
        # By kind. At most `MAX_CAUSES` of each.
        self._causes: dict[str, set[str]] = defaultdict(set)

    def note_credential(self, reason: str, error: BaseException | None = None) -> None:
        """Log that a credential was refused, or that there was none."""
        cause = error.__cause__ if error is not None else None
        if cause is not None:
            # The name alone: the text may have parts of the token.
            reason = f"{reason} ({type(cause).__name__})"
        reason = reason[:200]
        if self._is_new("credential", reason):
            logger.warning(
                "access: credential refused reason=%s, tokens are read from the subprotocol "
                "access_token.<jwt>, Authorization: Bearer, ?token=, the cookie %s or the frame "
                "auth, and checked by authenticate or SEMANTIK_REALTIME_JWT_* (logged once)",
                reason,
                self._cookie,
            )

    def note_denied(self, topic: str, reason: str) -> None:
        """Log that a user may not watch a topic."""
        if self._is_new(reason, topic):
            logger.warning(
                "access: topic denied topic=%s reason=%s (authorize can allow it; logged once)",
                topic,
                reason,
            )

    def _is_new(self, kind: str, cause: str) -> bool:
        causes = self._causes[kind]
        if cause in causes or len(causes) >= MAX_CAUSES:
            return False
        causes.add(cause)
        return True
