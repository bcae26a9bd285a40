"""Trying again after a conflict with another writer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from tenacity import retry, retry_if_exception_type, wait_random_exponential

from semantik_realtime_nats.errors import SequenceConflict

Params = ParamSpec("Params")
Result = TypeVar("Result")

FIRST_CONFLICT_SECONDS = 0.002
LAST_CONFLICT_SECONDS = 0.1


def retry_conflicts(
    function: Callable[Params, Awaitable[Result]],
) -> Callable[Params, Awaitable[Result]]:
    """Decorate a coroutine function: on `SequenceConflict` it is called again, with no limit.

    The random pauses grow up to `LAST_CONFLICT_SECONDS`. The caller sets the deadline.
    """
    return retry(
        retry=retry_if_exception_type(SequenceConflict),
        wait=wait_random_exponential(FIRST_CONFLICT_SECONDS, max=LAST_CONFLICT_SECONDS),
    )(function)
