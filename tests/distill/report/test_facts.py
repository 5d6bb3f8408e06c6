"""A night's facts survive the way to disk and back, and what is no facts file is named."""

from pathlib import Path

import pytest

from distill.errors import DataError
from distill.report.facts import FACTS_FILE, NightFacts
from tests.distill.report.a_night import finished_night, night_without_training


@pytest.mark.parametrize("facts", [finished_night(), finished_night(promoted=False), night_without_training()])
def test_what_is_written_is_read(tmp_path: Path, facts: NightFacts) -> None:
    assert tmp_path / FACTS_FILE == facts.write(tmp_path)
    assert facts == NightFacts.read(tmp_path)


def test_a_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json cannot be read"):
        NightFacts.read(tmp_path)
    (tmp_path / FACTS_FILE).write_text('{"run": 3}')
    with pytest.raises(DataError, match=r"report\.json: run: "):
        NightFacts.read(tmp_path)
