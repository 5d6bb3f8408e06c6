"""``collect`` and ``curate`` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from distill.__main__ import app
from distill.dataset.archive import Archive
from distill.dataset.archive_writer import writing
from distill.dataset.files import read_examples, read_held_out
from distill.settings import DatasetSettings
from gateway.journal.record import encode
from gateway.settings import RedisSettings
from tests.distill.dataset.records import publish, race, races, rated
from tests.redis_server import RedisServer

runner = CliRunner()


@pytest.fixture
def dataset(tmp_path: Path, redis_settings: RedisSettings, monkeypatch: pytest.MonkeyPatch) -> DatasetSettings:
    monkeypatch.setenv("DISTILL_DATASET__ARCHIVE_DIR", str(tmp_path / "archive"))
    monkeypatch.setenv("GATEWAY_REDIS__URL", redis_settings.url)
    monkeypatch.setenv("COLUMNS", "200")
    return DatasetSettings(archive_dir=tmp_path / "archive")


def rows(output: str) -> dict[str, str]:
    cells_of_rows = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line
    ]
    return {cells[0]: cells[1] for cells in cells_of_rows}


def test_collect_then_curate(
    dataset: DatasetSettings, redis_server: RedisServer, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    """``curate`` sees the records that ``collect`` archived."""
    with redis_server.client() as client:
        publish(client, redis_settings, [*races(40), race("x", store=False, messages=None), rated("a", -1.0), b"junk"])
    collected = runner.invoke(app, ["collect"])
    assert 0 == collected.exit_code, collected.output
    counts = rows(collected.output)
    assert ("41", "1", "1") == (counts["completions archived"], counts["feedback archived"], counts["unreadable"])
    assert ("0", "43", "42") == (
        counts["archived before"],
        counts["trimmed from Redis"],
        counts["rows in the archive"],
    )
    (junk,) = (dataset.archive_dir / "_quarantine").iterdir()
    assert f"unreadable, kept as it came: {junk}" in collected.output

    curated = runner.invoke(app, ["curate", "--out", str(tmp_path / "out")])
    assert 0 == curated.exit_code, curated.output
    counts = rows(curated.output)
    assert "1" == counts["the caller asked not to store it"]
    assert "41" == counts["all completions"]
    examples, held_out = (
        read_examples(tmp_path / "out" / "examples.jsonl"),
        read_held_out(tmp_path / "out/held_out.jsonl"),
    )
    assert (str(len(examples)), str(len(held_out))) == (counts["trains"], counts["held-out prompts"])
    assert 40 == len(examples) + len(held_out)


def test_redis_gone_is_one_line_and_exit_code_75(dataset: DatasetSettings) -> None:
    result = runner.invoke(app, ["collect"])
    assert 75 == result.exit_code
    assert "Redis said ConnectionError" in result.output
    assert 1 == len(result.output.splitlines())


def test_a_damaged_archive_is_one_line_and_exit_code_2(dataset: DatasetSettings) -> None:
    archive = Archive(dataset.archive_dir)
    with writing(archive) as writer:
        writer.add([encode(race())])
    archive.parts()[0].write_bytes(b"PAR1")
    result = runner.invoke(app, ["curate"])
    assert 2 == result.exit_code
    assert f"{archive.parts()[0]} cannot be read" in result.output


@pytest.mark.parametrize("name", ["DISTILL_DATASET__ARCHIVES", "GATEWAY_REDIS__URI"])
def test_an_unknown_setting_is_exit_code_2(
    dataset: DatasetSettings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "x")
    result = runner.invoke(app, ["collect"])
    assert 2 == result.exit_code
    assert f"unknown settings: {name}" in result.output
