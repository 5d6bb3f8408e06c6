"""What the training tests share: one tiny base for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distill.training.tiny import tiny_base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny Llama."""
    return tiny_base(tmp_path_factory.mktemp("tiny"))
