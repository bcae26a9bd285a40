"""An entry of a log that somebody has deleted in the server is noticed by a replay."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
import redis

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.resume import Reason
from semantik_realtime.testing.contract import Author

TOPIC = "job:1"


@pytest.mark.parametrize("count", [10, 90])
async def test_a_replay_with_a_deleted_entry_becomes_a_snapshot_with_the_reason(
    server_url: Callable[[str], str], default_row: str, count: int
) -> None:
    url = server_url(default_row)
    backend = RedisBackend(Settings(url=url, prefix=f"t{secrets.token_hex(5)}"))
    author = Author()
    drafts = [author.draft(TOPIC, state={"n": n}) for n in range(count)]
    places = [receipt.cursor for receipt in backend.publish(drafts)]
    await backend.open()
    try:
        assert (await backend.snapshot(TOPIC, places[2], 0)).reason is None
        with redis.Redis.from_url(url) as client:
            assert client.xdel(backend._keys(TOPIC)[1], f"{count - 3}-0") == 1
        snapshot = await backend.snapshot(TOPIC, places[2], 0)
        assert snapshot.reason is Reason.TRIMMED
        assert b'"n":%d' % (count - 1) in snapshot.states["1"]
        # What follows the hole is whole.
        assert len((await backend.snapshot(TOPIC, places[-3], 0)).events) == 2
        assert (await backend.snapshot(TOPIC, places[-4], 0)).reason is Reason.TRIMMED
    finally:
        await backend.close()
        backend.close_writer()
