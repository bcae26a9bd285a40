"""``celery realtime``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def celery(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_shows_backend_and_url_without_the_password() -> None:
    answer = celery(
        "realtime",
        SEMANTIK_REALTIME_URL="redis://user:topsecret@cache:6379/2?password=topsecret",
        SEMANTIK_REALTIME_BACKEND="redis",
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == [
        *("mirror", "on"),
        *("backend", "redis"),
        *("url", "redis://***@cache:6379/2?***"),
    ]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://u:topsecret@one,nats://u:topsecret2@two", "nats://***@one,nats://***@two"),
        ("redis://:top#topsecret@host", "redis://***"),
        ("redis://:topsecret#top@host", "redis://***"),
        ("redis://user:topsecret@topsecret@host", "redis://***@host"),
        (":topsecret@host", "***"),
    ],
)
def test_it_shows_several_or_malformed_urls_without_a_password(url: str, shown: str) -> None:
    answer = celery("realtime", SEMANTIK_REALTIME_URL=url)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[-1] == shown
    assert "topsecret" not in answer.stdout + answer.stderr


def test_it_shows_if_the_mirror_is_off() -> None:
    assert "mirror   off" in celery("realtime", SEMANTIK_REALTIME_MIRROR="0").stdout


def test_it_names_a_wrong_setting() -> None:
    answer = celery("realtime", SEMANTIK_REALTIME_PROGRESS_SECONDS="soon")
    assert answer.returncode != 0
    assert "PROGRESS_SECONDS" in (answer.stderr + answer.stdout).upper()


@pytest.mark.parametrize("mirror", ["0", "1"])
def test_celerys_other_commands_work_as_before(mirror: str) -> None:
    answer = celery("-A", "mirrored_app", "report", SEMANTIK_REALTIME_MIRROR=mirror)
    assert answer.returncode == 0, answer.stderr
    assert "software ->" in answer.stdout
