"""The route of the metrics: access, the host's registry, and several processes on one page."""

from __future__ import annotations

from pathlib import Path

import pytest
from clients import CompatClient, NativeClient
from configuration import token
from metrics_page import (
    METRICS_SETTINGS,
    SCRAPER,
    get_metrics,
    scrape,
    wait_for_samples,
)
from prometheus_client import CollectorRegistry, Counter, generate_latest
from publisher import Publisher
from web_servers import (
    InProcessServer,
    serve_realtime,
    server_processes,
)

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.errors import ConfigError

SETTINGS = METRICS_SETTINGS


async def test_metrics_need_the_metrics_token(
    web_server: InProcessServer, settings: Settings
) -> None:
    answer = await get_metrics(web_server, **SCRAPER)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["cache-control"] == "no-store"
    open_metrics = await get_metrics(web_server, **SCRAPER, Accept="application/openmetrics-text")
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")
    for credential in ("", "Bearer", "Bearer rubbish", f"Bearer {token()}", "Bearer ümlaut"):
        headers = {"Authorization": credential.encode()} if credential else {}
        answer = await get_metrics(web_server, **headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "semantik_realtime_" not in answer.text


async def test_without_a_configured_token_there_are_no_metrics(settings: Settings) -> None:
    closed = settings.model_copy(update={"metrics_token": None})
    async with serve_realtime(closed) as web_server:
        for headers in ({}, SCRAPER, {"Authorization": f"Bearer {token()}"}):
            answer = await get_metrics(web_server, **headers)
            assert answer.status_code == 404
            assert answer.json() == {
                "code": "metrics_off",
                "message": "SEMANTIK_REALTIME_METRICS_TOKEN is not set",
            }


async def test_with_disable_auth_metrics_need_no_token(
    settings: Settings,
) -> None:
    development = {"metrics_token": None, "disable_auth": True, "environment": "development"}
    async with serve_realtime(settings.model_copy(update=development)) as web_server:
        answer = await get_metrics(web_server)
    assert answer.status_code == 200
    assert "semantik_realtime_connections" in answer.text


async def test_the_hosts_registry_has_its_own_metrics_and_these(settings: Settings) -> None:
    registry = CollectorRegistry(auto_describe=True)
    Counter("uploads", "Uploads to the host.", registry=registry).inc(3)
    async with serve_realtime(settings, registry=registry) as web_server:
        page = await scrape(web_server)
        assert page["uploads_total",] == 3
        assert page["connections", "native"] == 0
        assert b"semantik_realtime_drafts_total" in generate_latest(registry)
    with pytest.raises(ConfigError, match="Duplicated"):
        _ = Realtime(settings, registry=registry).web


async def test_without_prometheus_client_the_route_says_what_to_install(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with server_processes(1, settings, app="webhost_without_metrics:app") as [server]:
        answer = await get_metrics(server, **SCRAPER)
        assert answer.status_code == 501
        assert answer.json() == {
            "code": "no_metrics",
            "message": 'there are no metrics: pip install "semantik-realtime[metrics]"',
        }
        assert (await get_metrics(server)).status_code == 401
        async with NativeClient(server, "job:1") as client:
            await client.wait_synced()
            await publisher.publish("job:1", 3)
            await client.wait_for_offset("job:1", 4)


async def test_processes_that_share_a_directory_are_summed(
    settings: Settings, publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        server_processes(2, settings, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as (one, other),
        NativeClient(one, "job:1") as left_client,
        NativeClient(other, "job:1") as right_client,
        CompatClient(other.compat_url("1")) as compat,
    ):
        await left_client.wait_synced()
        await right_client.wait_synced()
        await compat.wait_for("current_state")
        await publisher.publish("job:1", 10, batch=10)
        await left_client.wait_for_offset("job:1", 11)
        await right_client.wait_for_offset("job:1", 11)
        sums = {
            ("connections", "native"): 2.0,
            ("connections", "compat"): 1.0,
            ("subscriptions",): 3.0,
            ("events_received_total",): 20.0,
            ("events_delivered_total",): 30.0,
            ("degraded",): 0.0,
        }
        for server in (one, other):
            page = await wait_for_samples(server, sums)
            assert page["delivery_lag_seconds_count",] >= 3
            assert (
                page["delivery_lag_seconds_bucket", "+Inf"] == page["delivery_lag_seconds_count",]
            )

        # A killed process cannot clear its gauges; its counters stay.
        other.kill()
        left = {**sums, ("connections", "native"): 1.0, ("connections", "compat"): 0.0}
        left["subscriptions",] = 1.0
        page = await wait_for_samples(one, left)
        one.stop()
        await one.wait_ended()
        async with server_processes(1, settings, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as [third]:
            end = {
                ("connections", "native"): 0.0,
                ("connections_closed_total", "drain"): 1.0,
                ("events_received_total",): 20.0,
            }
            await wait_for_samples(third, end)


async def test_a_directory_that_cannot_be_written_disables_only_the_metrics(
    settings: Settings, publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.publish("job:1", 1)
    missing = str(tmp_path / "missing")
    async with server_processes(1, settings, PROMETHEUS_MULTIPROC_DIR=missing) as [server]:
        answer = await get_metrics(server, **SCRAPER)
        assert answer.status_code == 501
        assert missing in answer.json()["message"]
        async with NativeClient(server, "job:1") as client:
            await client.wait_synced()
