"""Pauses between retries: the one back-off of this project, over tenacity."""

from __future__ import annotations

import random

from tenacity import RetryCallState, wait_exponential


class Backoff:
    """The pauses of one sequence of failures. Not thread-safe: one owner each.

    The pause doubles with each failure from ``first_seconds`` to
    ``longest_seconds``. Each pause is then shortened by a random share of up
    to ``jitter`` (0 to 1), because many processes fail at the same moment and
    must not retry at the same moment.

    >>> backoff = Backoff(0.1, 1.0, jitter=0)
    >>> [backoff.next_seconds() for _ in range(5)]
    [0.1, 0.2, 0.4, 0.8, 1.0]
    >>> backoff.reset()
    >>> backoff.next_seconds()
    0.1
    """

    def __init__(
        self, first_seconds: float, longest_seconds: float, *, jitter: float = 0.5
    ) -> None:
        self._wait = wait_exponential(multiplier=first_seconds, max=longest_seconds)
        self._jitter = jitter
        # tenacity's count of the failures since the last `reset`.
        self._state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
        self.reset()

    @property
    def failures(self) -> int:
        """How many pauses were taken since the last `reset`."""
        return self._state.attempt_number - 1

    def next_seconds(self) -> float:
        """Count one more failure and return how long to wait before the next try."""
        seconds = self._wait(self._state)
        self._state.attempt_number += 1
        return seconds * random.uniform(1 - self._jitter, 1)  # noqa: S311

    def reset(self) -> None:
        """Start again with the first pause: a try succeeded."""
        self._state.attempt_number = 1


def spread(seconds: float, share: float = 0.15) -> float:
    """Return ``seconds``, longer or shorter by a random share of up to ``share``.

    For work that repeats: the processes of a fleet must not do it in the same moment.
    """
    return seconds * random.uniform(1 - share, 1 + share)  # noqa: S311
