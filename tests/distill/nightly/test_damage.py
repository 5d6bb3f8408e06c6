"""Files cut, edited or deleted between two attempts at a night give an error with advice, and the advice works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distill import exits
from distill.__main__ import app
from distill.dataset.archive import Archive
from distill.dataset.split import conversation_key
from distill.report.facts import NightFacts
from distill.run_dir import RunDir, runs
from gateway.__main__ import cli
from gateway.settings import RedisSettings, variables
from tests.distill.nightly.attempts import attempt
from tests.distill.nightly.fleet import environment, log_races
from tests.redis_server import RedisServer


class DamagedNight:
    """A night in its own folder, whose files are damaged between attempts."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self.environ = environ

    def run(self, *arguments: str, expected: int = exits.FINISHED, **changes: str) -> str:
        """Run one attempt; return its output, which is never a traceback."""
        log = self.folder / "attempts.log"
        log.unlink(missing_ok=True)
        code = attempt({**self.environ, **changes}, arguments)
        output = " ".join(log.read_text().split())
        assert expected == code, output
        assert output.endswith(f"SystemExit({code})") or code == 0, output
        return output

    @property
    def night(self) -> RunDir:
        return runs(self.folder / "runs")[-1]


@pytest.fixture
def damaged(
    tmp_path: Path, redis_server: RedisServer, redis_settings: RedisSettings, stub_urls: tuple[str, str], model: Path
) -> DamagedNight:
    tgi, rewards = stub_urls
    log_races(redis_server, redis_settings)
    folder = tmp_path / "night"
    folder.mkdir()
    return DamagedNight(
        folder, environment(folder, tgi_url=tgi, reward_url=rewards, redis_url=redis_server.url, model=model)
    )


def without(path: Path, name: str) -> bytes:
    return json.dumps({key: value for key, value in json.loads(path.read_bytes()).items() if key != name}).encode()


def test_a_damaged_manifest_is_named_and_can_be_restored_or_moved_away(damaged: DamagedNight) -> None:
    damaged.run("--until", "curate")
    manifest = damaged.night.path / "manifest.json"
    good = manifest.read_bytes()
    for bad in (
        b"{gar",
        b"",
        b"[]",
        b'{"began": "x"}',
        b"{}",
        *(without(manifest, n) for n in ("serving", "settings")),
    ):
        manifest.write_bytes(bad)
        output = damaged.run("--until", "curate", expected=exits.BAD_INPUT)
        assert "restore it, or move the run's folder away" in output, bad
    manifest.write_bytes(good)
    assert "goes on; done: collect, curate" in damaged.run("--until", "curate")
    manifest.write_bytes(b"{gar")
    shutil.move(damaged.night.path, damaged.folder / "away")
    damaged.run("--until", "curate")
    assert 1 == len(runs(damaged.folder / "runs"))


@pytest.mark.parametrize("step", ["curate", "train"])
def test_a_damaged_marker_is_named_and_its_step_runs_again_when_it_is_removed(damaged: DamagedNight, step: str) -> None:
    damaged.run("--until", "train")
    marker = damaged.night.marker(step)
    for bad in (b"", b"{}", b"{gar", b"[1]"):
        marker.write_bytes(bad)
        output = damaged.run("--until", "train", expected=exits.BAD_INPUT)
        assert str(marker) in output, bad
        assert "remove it, and the step is run again" in output, bad
    marker.unlink()
    damaged.run("--until", "train")
    assert "checkpoints" in (damaged.night.result("train") or {})


def test_a_damaged_note_of_the_first_attempt_at_drawing_is_named_and_written_again(damaged: DamagedNight) -> None:
    damaged.run("--until", "draw")
    damaged.night.unmark("draw")
    note = damaged.night.path / "draws" / "begun-draw.json"
    for bad in (b"{gar", b"{}"):
        note.write_bytes(bad)
        output = damaged.run("--until", "draw", expected=exits.BAD_INPUT)
        assert str(note) in output, bad
        assert "remove it, and it is written again" in output, bad
    note.unlink()
    damaged.run("--until", "draw")
    assert damaged.night.result("draw") is not None


def test_settings_that_would_change_a_begun_night_are_refused_by_name(damaged: DamagedNight) -> None:
    damaged.run("--until", "train")
    for name, value, text in (
        ("DISTILL_NIGHT__MIN_EXAMPLES", "1000", "night.min_examples"),
        ("GATEWAY_REDIS__KEY_PREFIX", "elsewhere", "GATEWAY_REDIS__KEY_PREFIX"),
        ("DISTILL_TRAINING__RANK", "8", "training.rank"),
        ("DISTILL_EVALUATION__ALPHA", "0.9", "evaluation.alpha"),
    ):
        output = damaged.run(expected=exits.BAD_INPUT, **{name: value})
        assert f"begun with other settings ({text}): set them back, or begin anew with --new" in output
    # Settings that do not change results may differ; one that the run's release did not have counts as its default.
    manifest = damaged.night.path / "manifest.json"
    document = json.loads(manifest.read_bytes())
    del document["settings"]["dataset"]["reward_models"], document["gateway"]["redis"]["key_prefix"]
    manifest.write_bytes(json.dumps(document).encode())
    damaged.run("--until", "train", DISTILL_EVALUATION__CONCURRENCY="3", DISTILL_PROMOTION__CANARY_SHARE="0.5")


def test_missing_samples_and_rewards_are_made_again_before_the_gate(damaged: DamagedNight) -> None:
    """Deleted, edited or cut files lead to the same result; an unreadable line is named."""
    damaged.run("--until", "score")
    (draws,), (scores,) = (list((damaged.folder / "draws").glob(name)) for name in ("base-*.jsonl", "scores-*.jsonl"))
    good = draws.read_bytes().splitlines(keepends=True)
    edited = json.dumps({**json.loads(good[0]), "text": "SOMETHING ELSE"}).encode() + b"\n"
    rewards = scores.read_bytes().splitlines(keepends=True)
    cases: tuple[tuple[Path, list[bytes], str], ...] = (
        (draws, good[:-20], "20 draws are not there any more: they are drawn again"),
        (draws, [], f"{len(good)} draws are not there any more: they are drawn again"),
        (draws, [edited, *good[1:]], "1 draws have no reward any more: they are scored again"),
        (scores, rewards[1:], "no reward any more: they are scored again"),
    )
    for path, lines, words in cases:
        path.write_bytes(b"".join(lines))
        assert words in damaged.run("--until", "score")
        assert "no reward" not in damaged.run("--until", "score")
    for path, line, advice in (
        (draws, b"garbage\n", "is not a sample: remove the line, and it is drawn again"),
        (scores, b'["a", NaN]\n', "is not a score: remove the line to score it again"),
        (scores, b'["a"]\n', "is not a score: remove the line to score it again"),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole + line)
        output = damaged.run(expected=exits.BAD_INPUT)
        assert advice in output
        path.write_bytes(whole)
    damaged.run()
    assert "promoted" == NightFacts.read(damaged.night.path).outcome


def test_samples_missing_after_the_gate_do_not_hide_its_verdict(damaged: DamagedNight) -> None:
    damaged.run("--until", "gate")
    (draws,) = (damaged.folder / "draws").glob("base-*.jsonl")
    draws.write_bytes(b"")
    damaged.run()
    facts = NightFacts.read(damaged.night.path)
    assert ("promoted", None, []) == (facts.outcome, facts.measured, facts.samples)
    assert facts.verdict is not None
    assert facts.verdict.promote


def test_a_damaged_log_of_attempts_does_not_stop_a_night(damaged: DamagedNight) -> None:
    """It only holds the time that steps took."""
    damaged.run("--until", "gate")
    attempts = damaged.night.path / "attempts.jsonl"
    attempts.write_bytes(b'garbage\n[1]\n{"step": "train", "seconds": "x"}\n' + attempts.read_bytes() + b"{half")
    damaged.run()
    assert damaged.night.finished


def test_a_persons_data_can_be_deleted_between_any_two_attempts(damaged: DamagedNight) -> None:
    """The night continues without it: before and after training, drawing, scoring and the gate."""
    for step in ("curate", "train", "draw", "score", "gate"):
        damaged.run("--until", step)
        keys = [conversation_key(record.messages or []) for record in Archive(damaged.folder / "archive").completions()]
        curated = [
            json.loads(line)["key"] for line in (damaged.night.path / "held_out.jsonl").read_bytes().splitlines()
        ]
        trained = next(key for key in keys if key not in curated)
        output = CliRunner().invoke(
            app,
            ["forget", "--conversation", curated[0], "--conversation", trained],
            env={**dict.fromkeys(variables()), **damaged.environ},
        )
        assert 0 == output.exit_code, output.output
    damaged.run()
    facts = NightFacts.read(damaged.night.path)
    assert facts.outcome in ("promoted", "kept")
    assert facts.samples
    assert facts.measured is not None


def test_a_missing_serving_adapter_is_named_before_training(damaged: DamagedNight, redis_server: RedisServer) -> None:
    """A dry run names it too; with its folder restored, or another policy and --new, nights continue."""

    def serve(*options: str) -> int:
        command = ["policy", "set", "--reason", "by hand", *options]
        return CliRunner().invoke(cli, command, env={**dict.fromkeys(variables()), **damaged.environ}).exit_code

    name = "rft-20260101-0123456789ab"
    assert 0 == serve("--adapter", name, "--n", "2")
    for arguments in ([], ["--dry-run"], ["--new"]):
        output = damaged.run(*arguments, expected=exits.BAD_INPUT)
        assert f"the policy serves {name}, but" in output
        assert "restore the adapter's folder" in output
    assert [] == runs(damaged.folder / "runs")
    assert 60 == Archive(damaged.folder / "archive").count(), "what was in the journal was not archived"
    assert 0 == serve("--adapter", "", "--n", "4")
    damaged.run("--until", "curate")
