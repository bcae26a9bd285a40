"""A misspelt setting of a backend or plugin is pointed out, with the name that it resembles."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from test_loader import install

from semantik_realtime.backends import loader
from semantik_realtime.backends.loader import unknown_settings
from semantik_realtime.cli.doctor import examine

SETTINGS = """
    from pydantic import AliasChoices, Field
    from pydantic_settings import BaseSettings, SettingsConfigDict

    class PigeonSettings(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="SEMANTIK_REALTIME_PIGEON_", extra="ignore")
        coops: int = 1
        grain_kilos: float = Field(
            1.0, validation_alias=AliasChoices("SEMANTIK_REALTIME_PIGEON_GRAIN_KILOS", "GRAIN")
        )
"""
RIGHT = ("SEMANTIK_REALTIME_PIGEON_COOPS", "semantik_realtime_pigeon_grain_kilos", "GRAIN")


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pigeon_settings", raising=False)
    made: dict[str, str] = {}
    monkeypatch.setattr(loader.os, "environ", made)
    return made


def install_pigeon(folder: Path, *, names_settings: bool = True, text: str = SETTINGS) -> None:
    groups = {"semantik_realtime.backends": {"pigeon": "pigeon_backend:Backend"}}
    if names_settings:
        groups["semantik_realtime.settings"] = {"pigeon": "pigeon_settings:PigeonSettings"}
    # The backend's own module would fail: nothing but the settings may be imported.
    modules = {"pigeon_settings": text, "pigeon_backend": "import pigeons_library"}
    install(folder, "semantik-realtime-pigeon", groups, modules)


def test_a_misspelt_variable_of_a_plugin_is_reported_with_the_nearest_name(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    install_pigeon(tmp_path)
    wrong = {
        "SEMANTIK_REALTIME_PIGEON_COUPS": "SEMANTIK_REALTIME_PIGEON_COOPS",
        "SEMANTIK_REALTIME_PIGEON_GRAIN_KILO": "SEMANTIK_REALTIME_PIGEON_GRAIN_KILOS",
        "SEMANTIK_REALTIME_PIGEN_COOPS": "SEMANTIK_REALTIME_PIGEON_COOPS",
    }
    environ.update(dict.fromkeys([*wrong, *RIGHT], "1"))
    assert unknown_settings() == wrong


def test_it_is_logged_at_start_and_reported_by_doctor(
    tmp_path: Path, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    install_pigeon(tmp_path)
    environ.update({"SEMANTIK_REALTIME_PIGEON_COUPS": "1", "SEMANTIK_REALTIME_BACKEND": "memory"})
    loader.log_unknown_settings.cache_clear()
    loader.log_unknown_settings()
    sentence = (
        "SEMANTIK_REALTIME_PIGEON_COUPS is no setting, is SEMANTIK_REALTIME_PIGEON_COOPS meant?"
    )
    assert [record.getMessage() for record in caplog.records] == [f"config: {sentence}"]
    assert sentence in [finding.text for finding in examine() if finding.grade == "warn"]


def test_every_variable_of_a_plugin_that_names_no_settings_is_accepted(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    install_pigeon(tmp_path, names_settings=False)
    environ["SEMANTIK_REALTIME_PIGEON_COUPS"] = "1"
    assert unknown_settings() == {}


def test_settings_that_cannot_be_imported_are_logged_and_accepted(
    tmp_path: Path, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    install_pigeon(tmp_path, text="import something_that_is_missing")
    environ["SEMANTIK_REALTIME_PIGEON_COUPS"] = "1"
    assert unknown_settings() == {}
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("loader: settings not read name=pigeon from=semantik")


def test_no_settings_are_imported_while_every_variable_is_known(
    tmp_path: Path, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    install_pigeon(tmp_path, text="import something_that_is_missing")
    environ["SEMANTIK_REALTIME_PREFIX"] = "other"
    assert unknown_settings() == {}
    assert not caplog.records
