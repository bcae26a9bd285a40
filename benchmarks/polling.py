"""Waiting for a condition, with a deadline."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    retry_if_not_result,
    stop_after_delay,
    wait_fixed,
)

from benchmarks.measurement import MeasurementFailed


def wait_until(
    condition: Callable[[], bool],
    seconds: float,
    what: str,
    *,
    poll_seconds: float = 0.1,
    ignored: tuple[type[Exception], ...] = (),
) -> None:
    """Call ``condition`` until it returns True; blocks the calling thread.

    An ``ignored`` exception counts as False, any other one ends the wait.

    Raises:
        MeasurementFailed: it did not within ``seconds``; the message names ``what``.
    """
    retry = retry_if_not_result(bool)
    try:
        Retrying(
            stop=stop_after_delay(seconds),
            wait=wait_fixed(poll_seconds),
            retry=(retry | retry_if_exception_type(ignored)) if ignored else retry,
        )(condition)
    except RetryError:
        raise MeasurementFailed(f"waited {seconds:g} s in vain: {what}") from None
