"""The right to publish: without it a user appends, and watchers see that only when they look."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from redis.exceptions import ResponseError

from semantik_realtime.backends.redis.nodes import Layout
from semantik_realtime.backends.redis.refusals import Kind, kind_of

logger = logging.getLogger(__name__)

MARK = b"!"
"""The first character of a reply of append.lua whose events were not published."""


def publish_command(layout: Layout | None) -> str:
    """Return what the scripts publish with: in a cluster in the shard of the topic."""
    return "SPUBLISH" if layout is not None and layout.is_cluster else "PUBLISH"


class PublishRight:
    """Whether the user of this process may publish to the channels of the topics.

    Args:
        prefix: of the channels and keys.
    """

    def __init__(self, prefix: str) -> None:
        # Whether the log says already that something was not published.
        self._is_logged = False
        self._channels = f"{prefix}:*"
        self.key = f"{prefix}:rights:{secrets.token_hex(6)}"
        """The key and the channel by which `warnings` asks."""

    def check(self, published: bool, command: str) -> bool:
        """Log, once, if a script has written and could not publish; return ``published``.

        ``command`` is what the script publishes with (`publish_command`).
        """
        if not published and not self._is_logged:
            self._is_logged = True
            logger.error("redis: events appended and not published: %s", self._advice(command))
        return published

    async def warnings(self, client: Any, command: str) -> list[str]:
        """Ask the server, with a channel to which nobody listens; return what is to be corrected.

        ``client`` is that of the node that has `key`, ``command`` what it publishes with. Of a
        user that may not write either nothing is to be said: it is one that only reads.
        """
        try:
            await client.execute_command("ZREM", self.key, "nobody")
        except ResponseError:
            return []
        try:
            await client.execute_command(command, self.key, "")
        except ResponseError as error:
            if kind_of(error) is Kind.RIGHTS:
                return [self._advice(command)]
        return []

    def _advice(self, command: str) -> str:
        return (
            f"the user may not publish to the channels {self._channels}, so watchers see its "
            f"events up to ten seconds late: add +{command.lower()} &{self._channels} to its ACL"
        )
