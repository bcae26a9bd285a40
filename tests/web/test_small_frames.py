"""Frames leave when they are written, also where the server was given a socket that is bound."""

from __future__ import annotations

import socket

import pytest
from clients import CompatClient, NativeClient, SseClient
from configuration import make_settings
from publisher import Publisher
from web_servers import InProcessServer, serve_realtime


def has_no_delay(server: InProcessServer) -> bool:
    """Return whether the only open socket of the server sends small frames at once."""
    [connection] = server.server.server_state.connections
    link = connection.transport.get_extra_info("socket")
    return bool(link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@pytest.mark.parametrize("wire", ["native", "sse", "compat"])
async def test_no_frame_waits_for_the_acknowledgement_of_the_one_before(wire: str) -> None:
    async with serve_realtime(make_settings("", backend="memory")) as server:
        await Publisher(server.rt.settings, server.rt).publish("job:1", 1)
        if wire == "compat":
            async with CompatClient(server.compat_url("1")) as compat:
                await compat.wait_for("current_state")
                assert has_no_delay(server)
            return
        kind = NativeClient if wire == "native" else SseClient
        async with kind(server, "job:1") as client:
            await client.wait_synced()
            assert has_no_delay(server)
