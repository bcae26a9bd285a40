"""The settings, the subjects and the stream's configuration."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest
from semantik_realtime.backends.loader import load_backend, unknown_settings
from semantik_realtime.config import load_settings
from semantik_realtime.errors import ConfigError

from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.settings import NatsSettings, plan_connect
from semantik_realtime_nats.subjects import Subjects


def test_the_backend_is_found_by_its_entry_point_and_configured_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEMANTIK_REALTIME_BACKEND", "nats")
    monkeypatch.setenv("SEMANTIK_REALTIME_URL", "nats://localhost:4222")
    assert isinstance(load_backend(load_settings()), NatsBackend)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@host/0",
        "u:hunter2@host",
        "hunter2@host:4222",
        "nats://u:1,hunter2@host",
        "nats://u:p@one,u:hunter2@two",
        "nats://u:12/hunter2@host",
        "nats://u:#hunter2@host",
        "nats://host:hunter2",
        "nats://u:p@one,nats://:hunter2",
        "nats://u:[hunter2]@host",
        "nats://u:hunter2℀@host",
    ],
)
def test_a_wrong_url_is_refused_without_repeating_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_URL") as caught:
        NatsBackend(load_settings(backend="nats", url=url))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_wrong_setting_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_STREAM", "the hunter2")
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_NATS_STREAM") as caught:
        NatsBackend(load_settings(backend="nats"))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("name", "value"),
    [("REPLICAS", "9"), ("STREAM", "a b"), ("CREDENTIALS", "/nowhere/x"), ("TLS_CA", "/nowhere/x")],
)
def test_an_error_names_the_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"SEMANTIK_REALTIME_NATS_{name}", value)
    with pytest.raises(ConfigError, match=f"SEMANTIK_REALTIME_NATS_{name}"):
        NatsBackend(load_settings(backend="nats"))


def test_more_keys_than_fit_in_a_message_are_refused() -> None:
    NatsBackend(load_settings(backend="nats", max_keys=10_000))
    with pytest.raises(ConfigError, match=r"SEMANTIK_REALTIME_MAX_KEYS.* at most 10000"):
        NatsBackend(load_settings(backend="nats", max_keys=10_001))


def test_every_topic_and_every_key_is_one_token_of_a_subject() -> None:
    subjects = Subjects(load_settings(prefix="my.app"), NatsSettings())
    assert subjects.stream == "my_app"
    assert subjects.log("job:a.b@c=+~-").split(".") == ["my/app", "topic", "job:a/b@c=+~-", "log"]
    for key in ("a.b", "*", ">", " ", "ключ"):
        assert len(subjects.state("job:1", key).split(".")) == 5
    assert subjects.state("job:1", "a") != subjects.state("job:1", "b")


def test_the_stream_in_the_readme_is_the_one_that_the_backend_creates() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    described = json.loads(readme.partition("```json\n")[2].partition("```")[0])
    assert described == Subjects(load_settings(), NatsSettings(replicas=3)).stream_config()


def test_the_readme_names_every_setting() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in NatsSettings.model_fields:
        assert f"SEMANTIK_REALTIME_NATS_{name.upper()}" in readme


def test_a_list_of_urls_may_have_spaces() -> None:
    options = plan_connect("nats://a:1, tls://b:2", NatsSettings())
    assert options.urls == ["nats://a:1", "tls://b:2"]


def test_a_misspelt_variable_is_reported_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in NatsSettings.model_fields:
        monkeypatch.setenv(f"SEMANTIK_REALTIME_NATS_{name.upper()}", "1")
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_REPLICA", "3")
    assert unknown_settings() == {
        "SEMANTIK_REALTIME_NATS_REPLICA": "SEMANTIK_REALTIME_NATS_REPLICAS"
    }
