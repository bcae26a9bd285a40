"""``semantik-realtime doctor`` on servers behind sentinels and on clusters."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import redis
from commandline import run

from semantik_realtime.testing.servers import RedisServer, free_port, redis_program, running

ROWS = [
    pytest.param(row, text, marks=getattr(pytest.mark, row), id=row)
    for row, text in (
        ("sentinel", r"valkey 9\S+, master 127\.0\.0\.1:\d+"),
        ("cluster", r"redis 7\S+, a cluster of 3 masters"),
    )
]


@pytest.mark.parametrize(("row", "text"), ROWS)
def test_the_doctor_names_the_nodes(server_url: Callable[[str], str], row: str, text: str) -> None:
    url = server_url(row)
    done = run("doctor", REDIS_URL=url, SEMANTIK_REALTIME_JWT_SECRET="s" * 32)
    assert done.returncode == 0, done.stdout
    assert re.search(rf"ok +server +{text}", done.stdout)
    assert url in done.stdout
    assert "a read, a write and a subscription succeeded" in done.stdout


@pytest.mark.sentinel
@pytest.mark.parametrize(
    ("url", "text"),
    [
        (
            "sentinel://a:26379;sentinel://b:26379",
            r"write sentinels as redis\+sentinel://.*/NAME/0 \(NAME",
        ),
        ("redis+sentinel://a,b", r"the form is redis\+sentinel://"),
    ],
)
def test_the_doctor_says_how_a_url_is_written(url: str, text: str) -> None:
    done = run("doctor", REDIS_URL=url)
    assert done.returncode == 1
    assert re.search(rf"FAIL +backend +.*{text}", done.stdout)


@pytest.mark.sentinel
def test_the_doctor_reports_a_wrong_name_and_the_address_of_a_sentinel(
    server_url: Callable[[str], str],
) -> None:
    url = server_url("sentinel")
    done = run("doctor", REDIS_URL=url.replace("/realtime/", "/other/"))
    assert done.returncode == 1
    assert re.search(
        'FAIL +server +not usable: the sentinels .* know no master "other"', done.stdout
    ), done.stdout
    port = re.findall(r":(\d+)/", url)[0]
    done = run("doctor", REDIS_URL=f"redis://127.0.0.1:{port}/0")
    assert done.returncode == 1
    assert re.search(r"is a sentinel, .*redis\+sentinel://127\.0\.0\.1:\d+/NAME", done.stdout)


@pytest.mark.cluster
def test_the_doctor_reports_a_cluster_that_announces_another_address() -> None:
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with running(RedisServer(redis_program(), options=options)) as server:
        with redis.Redis(port=server.port) as admin:
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            admin.config_set("cluster-announce-ip", "127.0.0.9")
            admin.config_set("cluster-announce-port", 1)
        done = run("doctor", REDIS_URL=server.url)
    assert done.returncode == 1
    text = r"the node 127\.0\.0\.9:1, by the address that the cluster announces: "
    assert re.search(f"FAIL +server +not usable: {text}", done.stdout), done.stdout
