"""Reads the meta hashes of many topics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from semantik_realtime.backends.redis.reader import Reader
from semantik_realtime.backends.redis.script import TOPS
from semantik_realtime.backends.redis.topology import Topology
from semantik_realtime.errors import BackendRefused

_FIELDS = ("epoch", "offset", "chain", "owner")
_decode = msgspec.json.Decoder(list[list[str | bool] | str]).decode


async def read_metas(topology: Topology, reader: Reader, metas: Sequence[str]) -> list[Any]:
    """Return the epoch, offset, chain and owner of each meta hash, as `replies.read_top` reads it.

    In the place of a hash that the server refuses to read is the error. On a server that is no
    cluster a script answers for all of them in one text: to read five replies for each topic
    takes a web server ten times as long.

    Raises:
        BackendError: they cannot be read now.
    """
    if not (await topology.find_async()).is_cluster:
        try:
            reply = await reader.run(TOPS, metas)
            found = _decode(reply.decode(errors="replace"))
        except (BackendRefused, msgspec.DecodeError):
            # The rights of one topic, or its bytes, must not take the others along.
            found = [""]
        if not any(isinstance(one, str) for one in found):
            return [[_bytes(field) for field in fields] for fields in found]
    return await reader.execute_all([(meta, ("HMGET", meta, *_FIELDS)) for meta in metas])


def _bytes(field: str | bool) -> bytes | None:
    return field.encode() if isinstance(field, str) else None
