"""The output and exit codes of ``run``, ``report`` and ``schedule``."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from distill import exits
from distill.__main__ import app
from distill.run_dir import new_run
from tests.distill.report.a_night import finished_night

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_NIGHT__RUNS_DIR", str(tmp_path))
    return tmp_path


def test_a_report_is_rendered_again_from_its_facts(runs_dir: Path) -> None:
    run = new_run(runs_dir, {})
    finished_night().write(run.path)
    for arguments in ([], [run.id], [str(run.path)]):
        result = runner.invoke(app, ["report", *arguments])
        assert exits.FINISHED == result.exit_code, result.output
        assert str(run.path / "report.html") in result.output
    assert (run.path / "report.html").read_text().startswith("<!")


def test_a_report_of_no_night_is_bad_input(runs_dir: Path) -> None:
    result = runner.invoke(app, ["report", "none"])
    assert exits.BAD_INPUT == result.exit_code
    assert "there is no run none" in result.stderr


def test_bad_settings_and_steps_are_named(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exits.BAD_INPUT == runner.invoke(app, ["run", "--until", "lunch"]).exit_code
    result = runner.invoke(app, ["run"])
    assert exits.BAD_INPUT == result.exit_code
    assert "no reward model: set GATEWAY_REWARD__MODEL" in result.stderr
    monkeypatch.setenv("DISTILL_NIGHT__AT", "noon")
    result = runner.invoke(app, ["schedule"])
    assert exits.BAD_INPUT == result.exit_code
    assert "DISTILL_NIGHT__AT" in result.stderr


def test_help_lists_every_exit_code() -> None:
    printed = " ".join(runner.invoke(app, ["run", "--help"]).output.split())
    assert all(f"{code}: " in printed for code in exits.TABLE)
