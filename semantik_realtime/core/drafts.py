"""From one event to the drafts that append it to several topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.core.event import Claim, Draft, StateChange, encode_checked_body
from semantik_realtime.core.limits import MAX_EVENT_BYTES
from semantik_realtime.core.topic import (
    check_key,
    check_topic,
    check_type,
    split_topic,
    user_topic,
)


def owners_of(topic: str, others: Sequence[str], owner: str | None) -> dict[str, str | None]:
    """Return the topics of an event, each with the owner that it gets.

    The owner of an event owns its ``topic``. A feed belongs to the user in its
    name, whoever writes to it. ``others`` may be shared topics, which must not
    become the property of the first job that writes to them.

    >>> owners_of("job:1", ["user:7", "collection:9"], "7")
    {'job:1': '7', 'user:7': '7', 'collection:9': None}
    """
    if owner is not None:
        user_topic(owner)
    return {topic: feed_owner(topic) or owner} | {
        other: feed_owner(other) for other in others if other != topic
    }


def feed_owner(topic: str) -> str | None:
    """Return the user whose feed ``topic`` is; None: it is no feed.

    Raises:
        TopicError: it is not a topic's name.
    """
    kind, ident = split_topic(topic)
    return ident if kind == "user" else None


def make_drafts(
    topics: Mapping[str, str | None],
    type: str,
    time: str,
    key: str,
    *,
    state: Mapping[str, Any] | msgspec.UnsetType | None = msgspec.UNSET,
    data: Mapping[str, Any] | None = None,
    job: str | None = None,
    attempt: int | None = None,
    claim: Claim | None = None,
    terminal: bool = False,
    due_at: float | None = None,
    max_bytes: int = MAX_EVENT_BYTES,
) -> list[Draft]:
    """Return one draft for each of ``topics``; the body is encoded once.

    Args:
        topics: each topic with the owner it gets (see `owners_of`).
        type: the event's type.
        time: when it happened, as `semantik_realtime.clock.now_text` writes it.
        key: whose state it is.
        state: the whole state; None deletes the key, unset leaves it as it is.
        data: further members, for this event only.
        job: the job whose attempts the fence orders.
        attempt: the number of the attempt; None means the newest one.
        claim: the attempt, if the backend has not assigned its number yet.
        terminal: whether it ends the attempt.
        due_at: when the job is to start, in seconds since 1970, if it waits for a time.
        max_bytes: limit of the encoded event.

    Raises:
        InvalidInput: a name is outside its grammar, or the event cannot be
            encoded or is too big.

    >>> drafts = make_drafts({"job:1": "7", "collection:9": None}, "note", "", "1")
    >>> [draft.owner for draft in drafts]
    ['7', None]
    """
    for topic in topics:
        check_topic(topic)
    check_type(type)
    check_key(key)
    return make_checked_drafts(
        topics,
        type,
        time,
        key,
        state=state,
        data=data,
        job=job,
        attempt=attempt,
        claim=claim,
        terminal=terminal,
        due_at=due_at,
        max_bytes=max_bytes,
    )


def make_checked_drafts(
    topics: Mapping[str, str | None],
    type: str,
    time: str,
    key: str,
    *,
    state: Mapping[str, Any] | msgspec.UnsetType | None,
    data: Mapping[str, Any] | None,
    job: str | None,
    attempt: int | None,
    claim: Claim | None,
    terminal: bool,
    due_at: float | None,
    max_bytes: int,
) -> list[Draft]:
    """Return what `make_drafts` does; ``topics``, ``type`` and ``key`` are within their grammar."""
    body = encode_checked_body(
        type, time, key, state=state, data=data, terminal=terminal, max_bytes=max_bytes
    )
    if state is msgspec.UNSET:
        change = StateChange.KEEP
    else:
        change = StateChange.DROP if state is None else StateChange.SET
    return [
        Draft(
            topic=topic,
            type=type,
            key=key,
            body=body,
            change=change,
            terminal=terminal,
            job=job,
            attempt=attempt,
            claim=claim,
            owner=owner,
            due_at=due_at,
        )
        for topic, owner in topics.items()
    ]
