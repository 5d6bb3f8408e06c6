"""The night's settings are read from the environment; unknown and bad ones are named."""

import re

import pytest
from typer.testing import CliRunner

from distill import settings
from distill.__main__ import app
from distill.errors import SettingsError


def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_EVALUATION__TEMPERATURES", "0.5, 1")
    monkeypatch.setenv("DISTILL_NIGHT__MIN_EXAMPLES", "7")
    loaded = settings.load()
    assert ((0.5, 1.0), 7) == (loaded.evaluation.temperatures, loaded.night.min_examples)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISTILL_NIGHT__AT", "25:00"),
        ("DISTILL_EVALUATION__DRAWS", "none"),
        ("DISTILL_TRAINING__OBJECTIVE", "ppo"),
        ("DISTILL_NIGHT__NO_SUCH", "1"),
    ],
)
def test_an_unknown_or_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        settings.load()


def test_a_setting_that_became_a_constant_is_ignored_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DISTILL_TRAINING__WARM_UP", "0.5")
    assert 0.05 == settings.load().training.warm_up
    assert "settings_ignored: DISTILL_TRAINING__WARM_UP" in caplog.text
    assert "DISTILL_TRAINING__WARM_UP" not in settings.variables()


def test_every_default_in_the_table_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (default, _) in settings.variables().items():
        if default:
            monkeypatch.setenv(name, default)
    assert settings.Settings.model_construct() == settings.load()


def test_every_setting_has_a_meaning() -> None:
    assert [] == [name for name, (_, meaning) in settings.variables().items() if not meaning]


def test_the_command_prints_a_table_and_an_environment_file() -> None:
    table = CliRunner().invoke(app, ["settings"]).output
    file = CliRunner().invoke(app, ["settings", "--env"]).output
    assert set(settings.variables()) == set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert set(settings.variables()) == set(re.findall(r"^#(\w+)=", file, re.MULTILINE))
