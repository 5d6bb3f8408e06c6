"""The settings in words are the settings in code."""

import re

import pytest

from gateway import settings, settings_table


def test_every_default_that_env_example_shows_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the file with every sign taken off changes nothing: names and values are ones the gateway takes."""
    for name, value in re.findall(r"^#(GATEWAY_\w+)=(.+)$", settings_table.env_example(), flags=re.MULTILINE):
        monkeypatch.setenv(name, value)
    assert settings.Settings.model_construct() == settings.load()


def test_no_setting_is_without_a_meaning() -> None:
    assert [] == [name for name, (_, meaning) in settings.variables().items() if not meaning]
