"""The metrics page of a web server, as a scraper reads it."""

from __future__ import annotations

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from web_servers import (
    WebServer,
)

SCRAPER = {"Authorization": "Bearer of the scraper"}
METRICS_SETTINGS = {
    "metrics_token": SecretStr(SCRAPER["Authorization"].removeprefix("Bearer ")),
    # Nothing but what a test does makes a server look for lost events.
    "tops_seconds": 3600.0,
}
Samples = dict[tuple[str, ...], float]
"""By the name of the metric, without its prefix, and the values of its labels."""


async def get_metrics(web_server: WebServer, **headers: str) -> httpx.Response:
    """Request the page."""
    async with httpx.AsyncClient(base_url=web_server.http_url, timeout=20) as http:
        return await http.get("/realtime/metrics", headers=headers)


async def scrape(web_server: WebServer) -> Samples:
    """Return every sample of the page."""
    answer = await get_metrics(web_server, **SCRAPER)
    assert answer.status_code == 200, answer.text
    return {
        (sample.name.removeprefix("semantik_realtime_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


async def wait_for_samples(
    web_server: WebServer, expected: Samples, seconds: float = 15.0
) -> Samples:
    """Wait until the page has these samples, and return the page."""
    deadline = time.monotonic() + seconds
    while True:
        page = await scrape(web_server)
        if expected.items() <= page.items():
            return page
        if time.monotonic() > deadline:
            found = {name: page.get(name) for name in expected}
            raise AssertionError(f"expected {expected}, found {found}")


def changes(before: Samples, after: Samples, *names: str) -> Samples:
    """Return by how much the samples of these metrics have changed."""
    return {
        sample: value - before[sample]
        for sample, value in after.items()
        if sample[0] in names and value != before[sample]
    }
