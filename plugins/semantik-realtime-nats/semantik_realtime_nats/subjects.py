"""The subjects of an application in NATS, and its stream."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from semantik_realtime.config import Settings
from semantik_realtime.errors import BackendRefused

from semantik_realtime_nats.settings import NatsSettings


class Subjects:
    """The subjects of topics, leases and holders, and the stream's name and configuration.

    Where a topic is an argument, ``*`` gives the wildcard subject of all topics.
    """

    def __init__(self, settings: Settings, nats_settings: NatsSettings) -> None:
        # A dot separates the tokens of a subject. No prefix and no topic contains a slash.
        self._prefix = settings.prefix.replace(".", "/")
        self._replicas = nats_settings.replicas
        self.stream = nats_settings.stream or settings.prefix.replace(".", "_")
        """The stream's name."""

    def stream_config(self) -> dict[str, Any]:
        """Return the configuration with which we create the stream."""
        return {
            "name": self.stream,
            "num_replicas": self._replicas,
            "storage": "file",
            **self.needed_config(),
        }

    def needed_config(self) -> dict[str, Any]:
        """Return the part of the configuration that an existing stream must have, too."""
        return {
            "subjects": [f"{self._prefix}.{part}" for part in ("topic.>", "lease.*", "held.*")],
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
            "retention": "limits",
            # Only this backend knows which messages it still needs. So the server removes none,
            # and a stream that is full refuses new ones.
            "discard": "new",
            "max_age": 0,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "republish": {"src": self.log("*"), "dest": self.live("{{wildcard(1)}}")},
        }

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Check the configuration of an existing stream.

        Raises:
            BackendRefused: it is another one than we need.
        """
        needed = self.needed_config().items()
        wrong = [name for name, value in needed if config.get(name) != value]
        if wrong:
            raise BackendRefused(
                f"the stream {self.stream} has other settings than we need ({', '.join(wrong)}); "
                "delete it, or set SEMANTIK_REALTIME_NATS_STREAM and SEMANTIK_REALTIME_PREFIX so "
                "that another one is used"
            )

    def log(self, topic: str) -> str:
        """Return the subject of a topic's log."""
        return self._topic(topic, "log")

    def checkpoint(self, topic: str) -> str:
        """Return the subject of a topic's checkpoint."""
        return self._topic(topic, "checkpoint")

    def state(self, topic: str, key: str) -> str:
        """Return the subject of one key's state."""
        return self._topic(topic, f"state.{_digest(key)}")

    def all_of(self, topic: str) -> str:
        """Return the wildcard subject of everything that is stored of a topic."""
        return self._topic(topic, ">")

    def live(self, topic: str) -> str:
        """Return the subject on which the server republishes a topic's log; ``>``: of all."""
        return f"{self._prefix}.live.{_token(topic)}"

    def lease(self, name: str) -> str:
        """Return the subject of a lease."""
        return f"{self._prefix}.lease.{_digest(name)}"

    def session(self, session: str) -> str:
        """Return the subject of what lengthens the leases of a process."""
        return self.lease(f"session {session}")

    def held(self, worker: str) -> str:
        """Return the subject of the jobs that a worker process holds; ``*``: of all of them."""
        return f"{self._prefix}.held.{worker if worker == '*' else _digest(worker)}"

    def _topic(self, topic: str, rest: str) -> str:
        return f"{self._prefix}.topic.{_token(topic)}.{rest}"


def topic_of(subject: str) -> str:
    """Return the topic of the subject of a log.

    >>> topic_of("semantik.topic.job:a/b.log")
    'job:a.b'
    """
    return subject.rsplit(".", 2)[1].replace("/", ".")


def _token(topic: str) -> str:
    return topic.replace(".", "/")


def _digest(name: str) -> str:
    # A key, or the name of a lease or a worker, may be any text; a token of a subject may not.
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
