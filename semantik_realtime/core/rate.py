"""How fast a number grows: units a second, over the last seconds."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 10.0
"""The rate is that of about so many last seconds."""
MIN_SECONDS = 1.0
"""Before so much time has passed no rate is known: the first units say little."""
MAX_SAMPLES = 40
"""Samples that are kept; those of the window are at least `WINDOW_SECONDS` / 20 apart."""


class Rate:
    """The rate of a count that is looked at from time to time.

    `add` costs the same however often it is called. ``now`` is in seconds, on
    any clock that does not go back.

    >>> rate = Rate()
    >>> [rate.add(count, now=float(second)) for second, count in enumerate([0, 5, 10, 40])]
    [None, 5.0, 5.0, 13.3]
    >>> rate.add(0, now=4.0) is None  # Another loop: the count has begun again.
    True
    """

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        # (time, count), oldest first. The first is as old as the window, or the first of all.
        self._samples: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)

    def add(self, count: float, now: float) -> float | None:
        """Note that the count is ``count`` now; return the units a second, with three digits.

        None: it is not known yet, or the count does not grow. A count that falls begins anew.
        """
        samples = self._samples
        if samples and count < samples[-1][1]:
            samples.clear()
        if not samples or now - samples[-1][0] >= WINDOW_SECONDS / 20:
            samples.append((now, count))
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_SECONDS:
            samples.popleft()
        since, before = samples[0]
        if now - since < MIN_SECONDS or count <= before:
            return None
        return float(f"{(count - before) / (now - since):.3g}")

    def clear(self) -> None:
        """Begin anew: something else is counted from now on."""
        self._samples.clear()
