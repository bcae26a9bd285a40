"""What is configured, and what a wrong configuration says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.errors import ConfigError

from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.settings import Names, NatsSettings


def test_the_entry_point_and_the_environment_are_all_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEMANTIK_REALTIME_BACKEND", "nats")
    monkeypatch.setenv("SEMANTIK_REALTIME_URL", "nats://localhost:4222")
    assert isinstance(load_backend(load_settings()), NatsBackend)


def test_a_redis_url_is_refused_without_telling_its_password() -> None:
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_URL") as caught:
        NatsBackend(load_settings(backend="nats", url="redis://user:secret@host/0"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("REPLICAS", "9"), ("STREAM", "a b"), ("CREDENTIALS", "/nowhere/x"), ("TLS_CA", "/nowhere/x")],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SEMANTIK_REALTIME_NATS_{name}", value)
    with pytest.raises(ConfigError, match=f"SEMANTIK_REALTIME_NATS_{name}|/nowhere/x"):
        NatsBackend(load_settings(backend="nats"))


def test_more_keys_than_fit_in_a_message_are_refused() -> None:
    NatsBackend(load_settings(backend="nats", max_keys=10_000))
    with pytest.raises(ConfigError, match=r"SEMANTIK_REALTIME_MAX_KEYS.* at most 10000"):
        NatsBackend(load_settings(backend="nats", max_keys=10_001))


def test_every_name_becomes_one_token() -> None:
    names = Names(load_settings(prefix="my.app"), NatsSettings())
    assert names.stream == "my_app"
    assert names.log("job:a.b@c=+~-").split(".") == ["my/app", "topic", "job:a/b@c=+~-", "log"]
    for key in ("a.b", "*", ">", " ", "ключ"):
        assert len(names.state("job:1", key).split(".")) == 5
    assert names.state("job:1", "a") != names.state("job:1", "b")


def test_the_stream_that_the_readme_describes_is_the_one_that_we_make() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    described = json.loads(readme.partition("```json\n")[2].partition("```")[0])
    assert described == Names(load_settings(), NatsSettings()).config(3)


def test_the_readme_names_every_setting() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in NatsSettings.model_fields:
        assert f"SEMANTIK_REALTIME_NATS_{name.upper()}" in readme
