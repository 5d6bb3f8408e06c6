from __future__ import annotations

from pathlib import Path

import pytest

from distill.settings import DatasetSettings


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetSettings:
    return DatasetSettings(archive_dir=tmp_path / "archive")
