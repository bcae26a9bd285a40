"""The arguments of append.lua, and its reply."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.backends.redis.script import milliseconds
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Outcome, Receipt, link
from semantik_realtime.core.limits import KEPT_PRODUCERS, MAX_PRODUCERS, PRODUCER_SECONDS
from semantik_realtime.core.retention import own_job

DUPLICATE = Receipt(Outcome.DUPLICATE)

_encode = msgspec.json.Encoder().encode
# What append.lua replies for a draft that it does not append.
_REFUSALS = {"d": DUPLICATE} | {outcome.value: Receipt(outcome) for outcome in Outcome}


def new_epoch() -> str:
    """Return an epoch for topics that a call makes; one topic never gets the same one twice."""
    return secrets.token_hex(5)


def append_header(settings: Settings) -> dict[str, Any]:
    """Return the members that the first argument of append.lua always has."""
    retention = settings.retention
    return {
        "events": settings.retention_events,
        "ttl_ms": milliseconds(retention.retention_seconds),
        "grace_ms": milliseconds(retention.grace_seconds),
        "open_ms": milliseconds(retention.open_seconds),
        "keys": settings.max_keys,
        "producers": [KEPT_PRODUCERS, round(PRODUCER_SECONDS), MAX_PRODUCERS],
        "bytes": settings.max_event_bytes,
    }


def append_arguments(
    header: Mapping[str, Any],
    epoch: str,
    topic: str,
    channel: str,
    drafts: Sequence[tuple[Draft, int]],
) -> list[bytes]:
    """Return the arguments of append.lua for drafts of one topic, each with its digest.

    Args:
        header: of `append_header`.
        epoch: of `new_epoch`, for the topic if there is none.
        topic: where they are appended.
        channel: where they are published.
        drafts: in their order.
    """
    own = own_job(topic) or ""
    first = {**header, "epoch": epoch, "channel": channel, "runs": _runs(own, drafts)}
    due_at = 0.0
    for draft, _ in drafts:
        if own and draft.key == own != draft.job:
            first["own"] = own
        if draft.due_at is not None and draft.due_at > due_at:
            due_at = draft.due_at
            first["due_ms"] = round(1000 * due_at)
    return [_encode(first), *[draft.body[1:] for draft, _ in drafts]]


def _runs(own: str, drafts: Sequence[tuple[Draft, int]]) -> list[Any]:
    """Return the drafts without their bodies, as append.lua expects them, in runs."""
    runs: list[Any] = []
    shared: tuple[Any, ...] | None = None
    next_number = 0
    for draft, digest in drafts:
        previous = shared
        shared = (
            draft.producer,
            draft.change,
            draft.key,
            draft.job or "",
            -1 if draft.attempt is None else draft.attempt,
            int(draft.terminal),
            int(draft.job == own),
            draft.owner or "",
            int(draft.begins),
        )
        if shared == previous and draft.number == next_number:
            runs[-1][8].append(digest)
        else:
            runs.append((*shared[:7], draft.number, [digest], *shared[7:]))
        next_number = draft.number + 1
    return runs


def read_receipts(reply: str, digests: Sequence[int], published: bool = True) -> Iterator[Receipt]:
    """Return the receipts in a reply of append.lua; ``digests`` are those of its drafts."""
    before, *texts = reply.split(",")
    epoch, offset_text, chain_text = before.split(" ")
    offset, chain = int(offset_text), int(chain_text)
    for text, digest in zip(texts or ["a"] * len(digests), digests, strict=True):
        if text == "a":
            offset, chain = offset + 1, link(chain, digest)
            place = Cursor(epoch, offset, chain)
            yield Receipt(Outcome.APPENDED, place, published=published)
        elif text.startswith("d "):
            _, first, first_chain = text.split(" ")
            yield Receipt(Outcome.DUPLICATE, Cursor(epoch, int(first), int(first_chain, 16)))
        elif text.startswith("a "):
            _, before_epoch, own_offset, own_chain = text.split(" ")
            place = Cursor(before_epoch, int(own_offset), int(own_chain, 16))
            yield Receipt(Outcome.APPENDED, place, published=published)
        else:
            yield _REFUSALS[text]
