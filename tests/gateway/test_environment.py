"""Settings are read from environment variables; their example file holds their defaults."""

import re

import pytest
from typer.testing import CliRunner

from gateway import settings
from gateway.__main__ import cli


def test_every_default_that_the_example_shows_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the file with every comment sign removed changes nothing: the gateway accepts all names and values."""
    example = CliRunner().invoke(cli, ["settings", "--env"]).stdout
    for name, value in re.findall(r"^#(GATEWAY_\w+)=(.+)$", example, flags=re.MULTILINE):
        monkeypatch.setenv(name, value)
    assert settings.Settings.model_construct() == settings.load()
