"""Fixtures for a container's environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import pytest

from distill import settings as distill_settings
from gateway import settings as gateway_settings

Configured = Callable[[Mapping[str, object]], tuple[gateway_settings.Settings, distill_settings.Settings]]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Configured:
    """Read the settings of both packages in this environment; unknown and bad ones raise."""

    def read(environment: Mapping[str, object]) -> tuple[gateway_settings.Settings, distill_settings.Settings]:
        for name in list(os.environ):
            if name.startswith((gateway_settings.PREFIX, distill_settings.PREFIX)):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return gateway_settings.load(), distill_settings.load()

    return read
