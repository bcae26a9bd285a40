"""Appends batches of drafts. A topic that the server refuses does not stop the others."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

from semantik_realtime.backends.redis.append import (
    DUPLICATE,
    append_arguments,
    append_header,
    new_epoch,
    read_receipts,
)
from semantik_realtime.backends.redis.refusals import (
    Kind,
    describe,
    explain,
    is_about_keys,
    kind_of,
)
from semantik_realtime.backends.redis.rights import MARK, PublishRight, publish_command
from semantik_realtime.backends.redis.script import APPEND
from semantik_realtime.backends.redis.topology import Topology
from semantik_realtime.backends.redis.writer import Writer
from semantik_realtime.clock import now_text
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, Outcome, Receipt, encode_body
from semantik_realtime.errors import AppendUncertain, BackendError

PATIENCE_SECONDS = 30.0
"""How long a topic is tried again whose error does not say that it is about this topic alone."""
MAX_DOUBTED = 1000
"""Topics with such an error that are remembered."""
TRIAL_SECONDS = 10.0
"""How long the server keeps the event by which it is found out whether it accepts others."""


class Appender:
    """See `semantik_realtime.hookspecs.Backend.publish`. From any thread.

    Args:
        writer: runs the script.
        topology: whether it is a cluster.
        settings: the limits.
        keys_of: the keys of a topic.
        channel_of: the channel of a topic.
        right: to publish; learns from the replies whether the user has it.
        sinks_key: where the filters of the sinks are.
    """

    def __init__(
        self,
        writer: Writer,
        topology: Topology,
        settings: Settings,
        keys_of: Callable[[str], list[str]],
        channel_of: Callable[[str], str],
        right: PublishRight,
        sinks_key: str,
    ) -> None:
        self._writer = writer
        self._topology = topology
        self._header = append_header(settings)
        brief = settings.model_copy(update={"retention_seconds": TRIAL_SECONDS})
        self._brief_header = append_header(brief)
        self._keys_of = keys_of
        self._channel_of = channel_of
        self._right = right
        self._sinks_keys = [sinks_key]
        # Topics with an unexplained error, and the monotonic time of the first one in a row.
        self._doubted: dict[str, float] = {}

    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        by_topic: dict[str, list[int]] = {}
        digests = []
        for place, draft in enumerate(drafts):
            by_topic.setdefault(draft.topic, []).append(place)
            digests.append(crc32(draft.body))
        parts = {
            topic: [(drafts[place], digests[place]) for place in places]
            for topic, places in by_topic.items()
        }
        replies = self._append(parts, self._header)
        self._check(list(by_topic), replies)
        command = publish_command(self._topology.layout)
        receipts: list[Receipt] = [DUPLICATE] * len(drafts)
        for places, reply in zip(by_topic.values(), replies, strict=True):
            if isinstance(reply, Exception):
                refused = Receipt(Outcome.REFUSED, reason=describe(reply))
                read = iter([refused] * len(places))
            else:
                published = self._right.check(not reply.startswith(MARK), command)
                text = reply.removeprefix(MARK).decode()
                read = read_receipts(text, [digests[place] for place in places], published)
            for place, receipt in zip(places, read, strict=True):
                receipts[place] = receipt
        return receipts

    def _append(
        self, parts: Mapping[str, list[tuple[Draft, int]]], header: dict[str, Any]
    ) -> Sequence[Any]:
        """Run the script for each topic; return replies and errors in order."""
        sinks_keys = self._sinks_keys
        if self._topology.find().is_cluster:
            header = {**header, "sharded": 1}
            # It is in another slot.
            sinks_keys = []
        epoch = new_epoch()
        calls = [
            (
                [*self._keys_of(topic), *sinks_keys],
                append_arguments(header, epoch, topic, self._channel_of(topic), part),
            )
            for topic, part in parts.items()
        ]
        return self._writer.run_each(APPEND, calls)

    def _check(self, topics: Sequence[str], replies: Sequence[Any]) -> None:
        """Return if each error is its topic's own, and the server accepts others.

        Raises:
            BackendError: as `semantik_realtime.hookspecs.Backend.publish`.
        """
        errors: dict[str, Exception] = {}
        for topic, reply in zip(topics, replies, strict=True):
            if isinstance(reply, Exception):
                errors[topic] = reply
            elif self._doubted:
                self._doubted.pop(topic, None)
        if not errors:
            return
        has_appended = len(errors) < len(replies)
        waits = [error for topic, error in errors.items() if not self._is_final(topic, error)]
        if not waits and (has_appended or self._accepts_others()):
            return
        reason = explain(waits[0] if waits else next(iter(errors.values())))
        if has_appended:
            raise AppendUncertain(f"{len(errors)} of {len(replies)} failed: {reason}")
        raise reason

    def _is_final(self, topic: str, error: Exception) -> bool:
        """Return True if trying again would not help, provided that others are accepted."""
        kind = kind_of(error)
        if kind is Kind.RIGHTS or is_about_keys(error):
            return True
        if kind is not Kind.CALL:
            return False
        if topic not in self._doubted and len(self._doubted) >= MAX_DOUBTED:
            self._doubted.clear()
        return (
            time.monotonic() - self._doubted.setdefault(topic, time.monotonic()) > PATIENCE_SECONDS
        )

    def _accepts_others(self) -> bool:
        """Return True if the server appends to a topic that nobody has written to."""
        token = secrets.token_hex(6)
        topic = f"probe:{token}"
        body = encode_body("probe", now_text(), token)
        draft = Draft(topic=topic, type="probe", key=token, body=body, producer=token, number=1)
        try:
            [reply] = self._append({topic: [(draft, crc32(body))]}, self._brief_header)
        except BackendError:
            return False
        return not isinstance(reply, Exception)
