"""Every setting is documented and read from its variable; errors name the variable."""

import logging
import re
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from semantik_realtime.backends import loader
from semantik_realtime.config import PREFIX, Settings, load_settings, unknown_variables
from semantik_realtime.errors import ConfigError
from semantik_realtime.runtime import Runtime

FIELDS = Settings.model_fields
ALIASES = {
    "url": "REDIS_URL",
    "jwt_secret": "JWT_SECRET_KEY",
    "disable_auth": "DISABLE_AUTH",
    "environment": "ENVIRONMENT",
}
"""Variables of common hosts that are read too."""
SECRETS = {"jwt_secret", "metrics_token", "topic_secrets"}


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    """Remove the variables of the developer's own environment."""
    for name in FIELDS:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    for name in ALIASES.values():
        monkeypatch.delenv(name, raising=False)


def other_value(name: str, field: FieldInfo) -> tuple[str, object]:
    """A text for a variable and the value it stands for, never the default."""
    if name == "path":
        return "/other", "/other"
    if name in ("compat_path", "compat_feed_path"):
        return "/one/{id}, /two", ["/one/{id}", "/two"]
    if name == "host_words":
        return "success=completed, done=job_completed", {
            "success": "completed",
            "done": "job_completed",
        }
    if name == "cancel_signal":
        return "SIGTERM", "SIGTERM"
    if name == "worker_metrics":
        return "other:1", "other:1"
    if name == "mirror_logs":
        return "WARNING", "WARNING"
    default = field.default
    match default:
        case bool():
            return str(not default).lower(), not default
        case int() | float():
            return str(default + 1), default + 1
        case list():
            return "one, two,three", ["one", "two", "three"]
    return f"other-{name}", f"other-{name}"


def shown(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_a_description_and_is_read_from_its_variable(name, monkeypatch):
    field = FIELDS[name]
    assert (field.description or "").endswith("."), "a description is a sentence"
    text, value = other_value(name, field)
    assert shown(getattr(load_settings(), name)) == field.default != value
    monkeypatch.setenv(PREFIX + name.upper(), text)
    settings = load_settings()
    assert shown(getattr(settings, name)) == value
    changed = {other for other in FIELDS if getattr(settings, other) != FIELDS[other].default}
    assert changed == {name}


@pytest.mark.parametrize("name", FIELDS)
def test_a_keyword_comes_before_every_variable(name, monkeypatch):
    text, value = other_value(name, FIELDS[name])
    monkeypatch.setenv(PREFIX + name.upper(), text)
    if name in ALIASES:
        monkeypatch.setenv(ALIASES[name], text)
    default = FIELDS[name].default
    unset = "SIGINT" if name == "cancel_signal" else "mine:1"
    given = SecretStr("mine") if name in SECRETS else unset if default is None else default
    assert getattr(load_settings(**{name: given}), name) == given != value


@pytest.mark.parametrize(("name", "alias"), ALIASES.items())
def test_the_variables_of_common_hosts_are_read_after_our_own(name, alias, monkeypatch):
    text, value = other_value(name, FIELDS[name])
    monkeypatch.setenv(alias, text)
    assert shown(getattr(load_settings(), name)) == value
    assert alias in (FIELDS[name].description or "")
    own, expected = ("false", False) if name == "disable_auth" else ("own", "own")
    monkeypatch.setenv(PREFIX + name.upper(), own)
    assert shown(getattr(load_settings(), name)) == expected


def test_only_prefixed_variables_and_the_named_ones_are_read(monkeypatch):
    for name in FIELDS.keys() - {"environment", "disable_auth"}:
        monkeypatch.setenv(name.upper(), "nonsense")
    assert load_settings() == Settings.model_construct()


@pytest.mark.parametrize(
    ("text", "items"),
    [("", []), (",", []), ("one", ["one"]), (" one ,two, ,", ["one", "two"]), ("*", ["*"])],
)
def test_lists_are_separated_by_commas(text, items, monkeypatch):
    monkeypatch.setenv(PREFIX + "ALLOWED_ORIGINS", text)
    assert load_settings().allowed_origins == items
    assert load_settings(allowed_origins=["a,b"]).allowed_origins == ["a,b"]


WRONG = {
    "prefix": ["a b", "", "x" * 65, "{x}", "a\n"],
    "retention_events": ["0", "1000001", "many", "1.5"],
    "retention_seconds": ["0", "-1", "nan"],
    "grace_seconds": ["0"],
    "max_keys": ["0"],
    "max_event_bytes": ["255"],
    "timeout_seconds": ["0", "soon"],
    "mirror": ["perhaps"],
    "progress_seconds": ["-0.1"],
    "feed_seconds": ["-1"],
    "flush_seconds": ["-1"],
    "spool_drafts": ["0"],
    "spool_bytes": ["65535"],
    "path": ["realtime"],
    "compat_path": ["ws/{id}", "/ws/{id},operations/{id}"],
    "compat_feed_path": ["ws/operations"],
    "compat_history": ["-1", "1001"],
    "host_words": [
        "done",
        "done=",
        "=completed",
        "done=finished",
        "failed=completed",
        "job_failed=job_lost",
        "Not A Type=job_failed",
        "done=completed,done=failed",
    ],
    "disable_auth": ["perhaps"],
    "max_connections": ["0"],
    "max_topics": ["0"],
    "heartbeat_seconds": ["0"],
    "tops_seconds": ["0"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in WRONG for text in WRONG[name]])
def test_a_wrong_value_is_a_config_error_that_names_the_setting(name, text, monkeypatch):
    monkeypatch.setenv(PREFIX + name.upper(), text)
    with pytest.raises(ConfigError) as wrong:
        load_settings()
    assert PREFIX + name.upper() in str(wrong.value)


def test_all_wrong_values_are_named_at_once(monkeypatch):
    for name, texts in WRONG.items():
        monkeypatch.setenv(PREFIX + name.upper(), texts[0])
    with pytest.raises(ConfigError) as wrong:
        load_settings()
    assert [name for name in WRONG if PREFIX + name.upper() not in str(wrong.value)] == []


def test_the_text_of_the_settings_shows_no_secret(monkeypatch):
    monkeypatch.setenv(PREFIX + "JWT_SECRET", "hunter2")
    settings = load_settings()
    assert settings.jwt_secret.get_secret_value() == "hunter2"
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in text


def test_the_text_of_the_settings_shows_no_password_of_a_url(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@localhost")
    settings = load_settings()
    assert settings.url == "redis://:hunter2@localhost"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def test_a_wrong_setting_shows_no_value_in_a_traceback():
    # In two parts, because a traceback shows lines of source too.
    secret = "-".join(["hunter", "two"])
    with pytest.raises(ConfigError) as wrong:
        load_settings(jwt_secret=[secret])
    assert secret not in "".join(traceback.format_exception(wrong.value))


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().backend = "other"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("development", True), ("Dev", True), ("test", True), ("production", False), ("prod", False)],
)
def test_only_a_named_development_environment_is_one(text, expected):
    assert load_settings(environment=text).is_development is expected
    assert not load_settings().is_development


@pytest.mark.parametrize("name", ["URL", "JWT_SECRET", "JWT_JWKS_URL"])
def test_an_empty_variable_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SEMANTIK_REALTIME_{name}", "")
    assert getattr(load_settings(), name.lower()) is None


def test_every_variable_of_the_package_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [PREFIX + name.upper() for name in FIELDS]
    names += [name.lower() for name in names] + list(ALIASES.values())
    names += [PREFIX + name for name in ("WS", "TOKEN", "NATS_REPLICAS", "MY_PLUGIN_X")]
    assert unknown_variables(names, {"nats": None, "my-plugin": None}) == {}


@pytest.mark.parametrize("name", FIELDS)
def test_a_misspelt_variable_is_reported_with_the_nearest_name(name: str) -> None:
    right = PREFIX + name.upper()
    wrong = right[:-1] + "Q"
    assert unknown_variables([wrong, "PATH"], {}) == {wrong: right}


def test_a_misspelt_variable_is_logged_once_at_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PREFIX + "RETENSION_SECONDS", "60")
    monkeypatch.setenv(PREFIX + "XYZZY", "60")
    loader.log_unknown_settings.cache_clear()
    for _ in range(3):
        Runtime(Settings(backend="memory"))
    assert [record.getMessage() for record in caplog.records] == [
        "config: SEMANTIK_REALTIME_RETENSION_SECONDS is no setting, "
        "is SEMANTIK_REALTIME_RETENTION_SECONDS meant?",
        "config: SEMANTIK_REALTIME_XYZZY is no setting",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_misspelt_keyword_is_refused() -> None:
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_RETENSION_SECONDS"):
        load_settings(retension_seconds=60)
    with pytest.raises(ValueError, match="retension_seconds"):
        Settings(retension_seconds=60)  # type: ignore[call-arg]


def test_no_env_file_is_read_and_the_example_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"{PREFIX}PREFIX=from-a-file\n")
    assert load_settings().prefix == FIELDS["prefix"].default
    first = (Path(__file__).parents[1] / ".env.example").read_text().splitlines()[0]
    assert re.match("# No file is read. Load it yourself", first)


def test_an_empty_variable_hides_the_further_one_that_a_setting_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JWT_SECRET_KEY", "the host's own")
    monkeypatch.setenv(PREFIX + "JWT_SECRET", "")
    assert load_settings().jwt_secret is None
