"""A host that pins websockets 11 can install the extras of a web server.

Only `tox -e lowest` runs this: it installs that version in the folder OLD_WEBSOCKETS.
"""

from __future__ import annotations

import os

from clients import NativeClient
from publisher import Publisher
from web_servers import ServerProcess

from semantik_realtime.config import Settings


async def test_its_server_delivers_each_event_once_in_order(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    folder = os.environ["OLD_WEBSOCKETS"]
    server = ServerProcess(settings, PYTHONPATH=folder, TEST_WEBSOCKETS="11.0.3")
    try:
        await server.wait_started()
        async with NativeClient(server, "job:1") as client:
            await client.wait_synced()
            await publisher.publish("job:1", 50)
            await client.wait_for_offset("job:1", 51)
    finally:
        server.kill()
    assert client.numbers("job:1") == list(range(1, 51))
    assert client.resubscribed == 0
