"""The Redis backend warns of the configurations under which a server loses events."""

from __future__ import annotations

import pytest

from semantik_realtime.backends.redis.status import _warnings


@pytest.mark.parametrize(
    ("info", "warned_of"),
    [
        ({}, []),
        ({"maxmemory_policy": "noeviction", "aof_enabled": 1, "rdb_saves": 0}, []),
        ({"maxmemory_policy": "allkeys-lru", "aof_enabled": 1}, ["maxmemory-policy"]),
        ({"aof_enabled": 0, "rdb_saves": 3}, ["no append-only file"]),
        ({"aof_enabled": 0, "rdb_saves": 0}, ["not saved"]),
        ({"maxmemory_policy": "volatile-ttl", "aof_enabled": 0}, ["maxmemory-policy", "no append"]),
    ],
    ids=str,
)
def test_it_warns_of_what_info_shows_and_of_nothing_else(
    info: dict[str, object], warned_of: list[str]
) -> None:
    warnings = _warnings(info)
    assert len(warnings) == len(warned_of)
    for warning, words in zip(warnings, warned_of, strict=True):
        assert words in warning
