"""Plugins and fixtures that every test may use."""

import logging
import os
from collections.abc import Iterator

import hypothesis
import pytest
import structlog

# No deadlines: on a busy machine any example may take long.
hypothesis.settings.register_profile("untimed", deadline=None)
# make fuzz: thirty times as many examples.
hypothesis.settings.register_profile("deep", deadline=None, max_examples=3_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "untimed"))

pytest_plugins = ["tests.redis_server"]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo the effect of ``configure_logging`` on this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
