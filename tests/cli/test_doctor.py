"""``semantik-realtime doctor``: what it checks, and how it reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import redis
from commandline import run

from semantik_realtime.cli import doctor
from semantik_realtime.testing.servers import (
    NatsServer,
    RedisServer,
    nats_program,
    running,
    valkey_program,
)

NO_SERVER = {"REDIS_URL": "redis://127.0.0.1:1/0"}
FAILURES = {
    "no server": NO_SERVER,
    "a wrong setting": {"SEMANTIK_REALTIME_RETENTION_EVENTS": "none"},
    "an unknown backend": {"SEMANTIK_REALTIME_BACKEND": "unknown"},
    "a wrong URL": {"REDIS_URL": "http://127.0.0.1"},
    "a short secret": {"SEMANTIK_REALTIME_JWT_SECRET": "s" * 31},
    "no authentication": {"DISABLE_AUTH": "1", "SEMANTIK_REALTIME_BACKEND": "memory"},
}


def test_doctor_succeeds_with_a_good_server(server_url: Callable[[str], str]) -> None:
    done = run("doctor", REDIS_URL=server_url("valkey"), SEMANTIK_REALTIME_JWT_SECRET="s" * 32)
    assert done.returncode == 0, done.stdout
    for expected in ("valkey 9", "clock", "memory", "celery.commands", "a read, a write"):
        assert expected in done.stdout
    assert "FAIL" not in done.stdout


@pytest.mark.nats
@pytest.mark.parametrize("row", ["nats"], indirect=True)
def test_doctor_warns_of_what_may_be_lost_on_nats(
    row: str, server_url: Callable[[str], str]
) -> None:
    settings = {"SEMANTIK_REALTIME_BACKEND": row, "SEMANTIK_REALTIME_URL": server_url(row)}
    done = run("doctor", SEMANTIK_REALTIME_JWT_SECRET="s" * 32, **settings)
    assert done.returncode == 0, done.stdout
    assert re.search(r"nats from semantik-realtime-nats \d", done.stdout)
    stream = r"ok +server +nats 2\.\d+.*, JetStream, stream semantik: \d+ messages"
    assert re.search(stream, done.stdout)
    assert re.search(r"warn +server.*sync_interval: always", done.stdout)
    assert re.search(r"ok +server +a read, a write and a subscription succeeded", done.stdout)


@pytest.mark.nats
@pytest.mark.parametrize("row", ["nats"], indirect=True)
def test_doctor_fails_without_jetstream(row: str) -> None:
    with running(NatsServer(nats_program(), jetstream=False)) as server:
        done = run("doctor", SEMANTIK_REALTIME_BACKEND=row, SEMANTIK_REALTIME_URL=server.url)
    assert done.returncode == 1
    assert re.search(r"FAIL +server.*no JetStream; start it with -js", done.stdout)


def test_doctor_fails_when_nothing_can_be_written() -> None:
    with running(RedisServer(valkey_program())) as server:
        with redis.Redis.from_url(server.url) as admin:
            rights = ("on", ">secret", "~*", "&*", "+@all", "-@write")
            admin.execute_command("ACL", "SETUSER", "reader", *rights)
        done = run("doctor", REDIS_URL=server.url.replace("//", "//reader:secret@"))
    assert done.returncode == 1
    assert re.search(r"ok +server +valkey 9", done.stdout)
    assert re.search(r"FAIL +server.*no permissions", done.stdout)


def test_doctor_fails_without_a_server() -> None:
    done = run("doctor", REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 1
    assert re.search(r"FAIL +server +not usable: .*127.0.0.1:1", done.stdout)


def test_doctor_names_the_wrong_setting() -> None:
    done = run("doctor", SEMANTIK_REALTIME_RETENTION_EVENTS="none")
    assert done.returncode == 1
    assert "RETENTION_EVENTS" in done.stdout.upper()


def test_doctor_fails_when_authentication_is_off_in_production() -> None:
    done = run("doctor", DISABLE_AUTH="1", SEMANTIK_REALTIME_BACKEND="memory")
    assert done.returncode == 1
    assert re.search(r"FAIL +access +authentication is off", done.stdout)


@pytest.mark.parametrize(("environment", "grade"), [("production", "FAIL"), ("test", "warn")])
def test_doctor_finds_a_secret_that_can_be_guessed(environment: str, grade: str) -> None:
    secret = {"SEMANTIK_REALTIME_JWT_SECRET": "s" * 31, "ENVIRONMENT": environment}
    done = run("doctor", SEMANTIK_REALTIME_BACKEND="memory", **secret)
    assert done.returncode == (grade == "FAIL")
    text = rf"{grade} +access +SEMANTIK_REALTIME_JWT_SECRET is shorter than the 32 bytes"
    assert re.search(text, done.stdout)
    assert "sss" not in done.stdout


def test_doctor_warns_of_eviction_and_of_a_server_that_never_saves() -> None:
    options = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    with running(RedisServer(valkey_program(), options=options)) as server:
        done = run("doctor", REDIS_URL=server.url)
    assert "maxmemory-policy noeviction" in done.stdout
    assert "appendonly yes" in done.stdout


@pytest.mark.parametrize("environment", FAILURES.values(), ids=FAILURES)
def test_doctor_says_what_to_do_about_each_failure(environment: dict[str, str]) -> None:
    done = run("doctor", "--json", **environment)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["ok"] is False
    failures = [finding for finding in report["findings"] if finding["grade"] == "fail"]
    assert failures
    assert all(finding["advice"] for finding in failures)


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        (
            {"REDIS_URL": "redis://u:secret@127.0.0.1:1/3?password=x"},
            "redis://***@127.0.0.1:1/3?*** (from",
        ),
        ({}, "redis://localhost:6379/0 (the default"),
    ],
)
def test_doctor_says_which_address_it_tried_and_no_password(
    environment: dict[str, str], address: str
) -> None:
    done = run("doctor", **environment)
    assert re.search(rf"^ +address +{re.escape(address)}", done.stdout, re.MULTILINE)
    assert "secret" not in done.stdout


def test_doctor_does_not_wrap_when_its_output_is_not_a_terminal() -> None:
    wide = run("doctor", COLUMNS="1000", **NO_SERVER).stdout
    assert run("doctor", COLUMNS="40", **NO_SERVER).stdout == wide
    assert max(len(line) for line in wide.splitlines()) > 150


def test_the_json_of_a_good_server_is_ok(server_url: Callable[[str], str]) -> None:
    done = run("doctor", "--json", REDIS_URL=server_url("valkey"))
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True)
    assert {"subject", "text", "grade", "advice"} == set(report["findings"][0])


def test_doctor_reports_a_misspelt_setting() -> None:
    done = run(
        "doctor", SEMANTIK_REALTIME_BACKEND="memory", SEMANTIK_REALTIME_RETENSION_SECONDS="60"
    )
    assert re.search(r"warn +settings +SEMANTIK_REALTIME_RETENSION_SECONDS is no", done.stdout)
    assert "SEMANTIK_REALTIME_RETENTION_SECONDS meant" in done.stdout


def test_doctor_warns_of_a_uvicorn_that_does_not_wait_for_the_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for installed, grade in (("0.28.1", "warn"), ("0.30.0", ""), ("0.54.0", "")):
        monkeypatch.setattr(doctor, "version", lambda _, installed=installed: installed)
        [finding] = [one for one in doctor.examine() if one.subject == "uvicorn"]
        assert finding.grade == grade
        assert bool(finding.advice) == (grade == "warn")
