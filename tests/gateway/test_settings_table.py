"""The settings in words are the settings in code."""

import re
from pathlib import Path

import pytest

from gateway import settings, settings_table

_ROOT = Path(__file__).parents[2]


def test_env_example_is_what_the_settings_make() -> None:
    assert settings_table.env_example() == (_ROOT / ".env.example").read_text()


def test_the_readme_holds_the_table_that_the_settings_make() -> None:
    _, table, _ = (_ROOT / "README.md").read_text().split("<!-- settings -->")
    assert settings_table.markdown().strip() == table.strip()


def test_every_default_that_env_example_shows_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the file with every sign taken off changes nothing: names and values are ones the gateway takes."""
    for name, value in re.findall(r"^#(GATEWAY_\w+)=(.+)$", settings_table.env_example(), flags=re.MULTILINE):
        monkeypatch.setenv(name, value)
    assert settings.Settings.model_construct() == settings.load()


def test_no_setting_is_without_a_meaning() -> None:
    assert [] == [name for name, (_, meaning) in settings.variables().items() if not meaning]
