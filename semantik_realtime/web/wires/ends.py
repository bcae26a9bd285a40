"""Whether anything can still happen in the topics of a stream, by what was sent of them (R7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from semantik_realtime.core.event import Event, StateChange
from semantik_realtime.core.lifecycle import is_finished
from semantik_realtime.core.topic import split_topic


class _Status(msgspec.Struct):
    """The member of a state that decides; an application may have set it to anything."""

    status: object = None


_decode = msgspec.json.Decoder(_Status).decode


def status_of(state: bytes | msgspec.Raw) -> dict[str, object]:
    """Return a state (JSON) without its other members; of what is no state nothing is left.

    >>> status_of(b'{"status":"lost","attempt":1}'), status_of(b"[]")
    ({'status': 'lost'}, {})
    """
    try:
        return {"status": _decode(state).status}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}


def statuses_of(states: Mapping[str, bytes]) -> dict[str, dict[str, object]]:
    """Return each of ``states`` (JSON) as `status_of` does."""
    return {key: status_of(state) for key, state in states.items()}


def may_finish(topics: Iterable[str]) -> bool:
    """Return True if each topic is a job's: others are never finished.

    >>> may_finish(["job:1"]), may_finish(["job:1", "user:7"])
    (True, False)
    """
    return all(split_topic(topic)[0] == "job" for topic in topics)


class StreamEnds:
    """The statuses in the topics of one stream, folded as its client folds the states.

    >>> ends = StreamEnds()
    >>> ends.reset("job:1", {"1": {"status": "running"}})
    >>> ends.is_finished({"job:1"})
    False
    >>> body = b'{"offset":2,"key":"1","state":{"status":"completed"}}'
    >>> ends.follow("job:1", [Event(2, 0, body)])
    >>> ends.is_finished({"job:1"}), ends.is_finished({"job:1", "job:2"})
    (True, False)
    """

    def __init__(self) -> None:
        self.has_news = False
        """Whether live events were sent. Set by the wire."""
        # By topic and key; only of jobs' topics.
        self._statuses: dict[str, dict[str, dict[str, object]]] = {}
        # The topics of which something was sent on this stream.
        self._sent: set[str] = set()

    def seed(self, topic: str, statuses: Mapping[str, dict[str, object]]) -> bool:
        """Learn the present statuses in a job's topic, because a replay does not have them.

        Return True if it is finished.
        """
        self._statuses[topic] = dict(statuses)
        return is_finished(topic, statuses)

    def reset(self, topic: str, statuses: Mapping[str, dict[str, object]]) -> None:
        """The client gets states with these statuses of ``topic``, and has no others."""
        if may_finish([topic]):
            self.seed(topic, statuses)
            self._sent.add(topic)

    def follow(self, topic: str, events: Iterable[Event]) -> None:
        """The client gets these events, after what it has."""
        if not may_finish([topic]):
            return
        self._sent.add(topic)
        statuses = self._statuses.setdefault(topic, {})
        for event in events:
            head = event.head()
            if head.change is StateChange.DROP:
                statuses.pop(head.key, None)
            elif isinstance(head.state, msgspec.Raw):
                statuses[head.key] = status_of(head.state)

    def is_finished(self, topics: Iterable[str]) -> bool:
        """Return True if nothing more happens in any of ``topics``, without new attempts."""
        return all(
            topic in self._sent and is_finished(topic, self._statuses[topic]) for topic in topics
        )
