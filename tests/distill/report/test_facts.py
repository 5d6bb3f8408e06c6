"""A night's facts survive the way to disk and back, those of an earlier release are read, and a bad file is named."""

import json
import shutil
from pathlib import Path

import pytest

from distill.errors import DataError
from distill.report.facts import FACTS_FILE, NightFacts
from distill.report.page import render
from tests.distill.report.a_night import finished_night, night_without_training


@pytest.mark.parametrize("facts", [finished_night(), finished_night(promoted=False), night_without_training()])
def test_written_facts_are_read_back(tmp_path: Path, facts: NightFacts) -> None:
    assert tmp_path / FACTS_FILE == facts.write(tmp_path)
    assert facts == NightFacts.read(tmp_path)


def test_a_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json cannot be read"):
        NightFacts.read(tmp_path)
    for text in ("{", "[]", '{"schema_version": 1}'):
        (tmp_path / FACTS_FILE).write_text(text)
        with pytest.raises(DataError, match=r"report\.json"):
            NightFacts.read(tmp_path)
    (tmp_path / FACTS_FILE).write_text('{"run": 3}')
    with pytest.raises(DataError, match=r"report\.json: run: "):
        NightFacts.read(tmp_path)


OLD = Path(__file__).with_name("schema_1")


def test_a_night_of_the_earlier_release_is_read_and_rendered(tmp_path: Path) -> None:
    """Its report.json repeated parts of verdict.json, in a format of its own."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    old = json.loads((OLD / FACTS_FILE).read_bytes())
    facts = NightFacts.read(tmp_path)
    assert facts.verdict is not None
    assert facts.measured is not None
    assert "N stays 4: on this evidence the new policy is no better" == facts.verdict.summary
    assert old["decision"]["why"] == facts.verdict.why
    assert [each["n"] for each in old["decision"]["tried"]] == [test.n for test in facts.verdict.best.tests]
    assert old["measured"]["equivalent_n"][0]["value"] == facts.verdict.best.worth_at_best.value
    tokens = [[point["tokens"] for point in curve["points"]] for curve in old["measured"]["curves"]]
    assert tokens == [each.pick_tokens for each in facts.measured.sample_sets]
    bounds = {"length": 5.0, "truncation": 0.03, "distinct answers": 0.6, "judge": 0.0}
    found = {each.name: each for each in facts.measured.guardrails}
    assert bounds == {name: found[name].bound for name in bounds}
    judge = found["judge"]
    assert (-0.5, -0.75, -0.25, False) == (judge.value, judge.low, judge.high, judge.passed)
    html = render(facts)
    assert "The held-out reward model does not agree" in html
    facts.write(tmp_path)
    assert facts == NightFacts.read(tmp_path)


def test_a_night_of_the_earlier_release_without_a_gate_is_read(tmp_path: Path) -> None:
    old = json.loads((OLD / FACTS_FILE).read_bytes())
    nothing = {"outcome": "too few examples", "headline": "N stays 4", "measured": None, "decision": None}
    (tmp_path / FACTS_FILE).write_text(json.dumps({**old, **nothing}))
    facts = NightFacts.read(tmp_path)
    assert (None, None) == (facts.measured, facts.verdict)
    assert "<h1>N stays 4</h1>" in render(facts)


def test_a_night_of_the_earlier_release_needs_its_verdict(tmp_path: Path) -> None:
    shutil.copy(OLD / FACTS_FILE, tmp_path)
    with pytest.raises(DataError, match=r"verdict\.json cannot be read"):
        NightFacts.read(tmp_path)
