"""Files that were cut, edited or removed between two attempts at a night: told in words, and the advice works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class Tried:
    """A night in a folder of its own, whose files are damaged between its attempts."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self.environ = environ

    def run(self, *arguments: str, expected: int = exits.FINISHED, **changes: str) -> str:
        """One attempt; returns what it said, which is never a trace."""
        log = self.folder / "attempts.log"
        log.unlink(missing_ok=True)
        code = attempt({**self.environ, **changes}, arguments)
        said = " ".join(log.read_text().split())
        assert expected == code, said
        assert said.endswith(f"SystemExit({code})") or code == 0, said
        return said

    @property
    def night(self) -> RunDir:
        return runs(self.folder / "runs")[-1]


@pytest.fixture
def tried(
    tmp_path: Path, redis_server: RedisServer, redis_settings: RedisSettings, stub_urls: tuple[str, str], model: Path
) -> Tried:
    tgi, rewards = stub_urls
    log_races(redis_server, redis_settings)
    folder = tmp_path / "night"
    folder.mkdir()
    return Tried(folder, environment(folder, tgi_url=tgi, reward_url=rewards, redis_url=redis_server.url, model=model))


def without(path: Path, name: str) -> bytes:
    return json.dumps({key: value for key, value in json.loads(path.read_bytes()).items() if key != name}).encode()


def test_a_damaged_manifest_is_named_and_mended_or_moved_away(tried: Tried) -> None:
    tried.run("--until", "curate")
    manifest = tried.night.path / "manifest.json"
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
        said = tried.run("--until", "curate", expected=exits.BAD_INPUT)
        assert "restore it, or move the run's folder away" in said, bad
    manifest.write_bytes(good)
    assert "goes on; done: collect, curate" in tried.run("--until", "curate")
    manifest.write_bytes(b"{gar")
    shutil.move(tried.night.path, tried.folder / "away")
    tried.run("--until", "curate")
    assert 1 == len(runs(tried.folder / "runs"))


@pytest.mark.parametrize("step", ["curate", "train"])
def test_a_damaged_marker_is_removed_as_told_and_its_step_runs_again(tried: Tried, step: str) -> None:
    tried.run("--until", "train")
    marker = tried.night.marker(step)
    for bad in (b"", b"{}", b"{gar", b"[1]"):
        marker.write_bytes(bad)
        said = tried.run("--until", "train", expected=exits.BAD_INPUT)
        assert str(marker) in said, bad
        assert "remove it, and the step is run again" in said, bad
    marker.unlink()
    tried.run("--until", "train")
    assert "checkpoints" in (tried.night.result("train") or {})


def test_settings_that_would_make_another_night_of_it_are_refused_by_name(tried: Tried) -> None:
    tried.run("--until", "train")
    for name, value, told in (
        ("DISTILL_NIGHT__MIN_EXAMPLES", "1000", "night.min_examples"),
        ("GATEWAY_REDIS__KEY_PREFIX", "elsewhere", "GATEWAY_REDIS__KEY_PREFIX"),
        ("DISTILL_TRAINING__RANK", "8", "training.rank"),
        ("DISTILL_EVALUATION__ALPHA", "0.9", "evaluation.alpha"),
    ):
        said = tried.run(expected=exits.BAD_INPUT, **{name: value})
        assert f"begun with other settings ({told}): set them back, or begin anew with --new" in said
    # What changes no result may change, and a setting that the night's release did not know has its default.
    manifest = tried.night.path / "manifest.json"
    document = json.loads(manifest.read_bytes())
    del document["settings"]["dataset"]["reward_models"], document["gateway"]["redis"]["key_prefix"]
    manifest.write_bytes(json.dumps(document).encode())
    tried.run("--until", "train", DISTILL_EVALUATION__CONCURRENCY="3", DISTILL_PROMOTION__CANARY_SHARE="0.5")


def test_draws_and_rewards_that_are_gone_are_made_again_before_the_gate(tried: Tried) -> None:
    """Removed, edited, or not there at all: the same night comes out, and a line that is none is named."""
    tried.run("--until", "score")
    (draws,), (scores,) = (list((tried.folder / "draws").glob(name)) for name in ("base-*.jsonl", "scores-*.jsonl"))
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
        assert words in tried.run("--until", "score")
        assert "no reward" not in tried.run("--until", "score")
    for path, line in ((draws, b"garbage\n"), (scores, b'["a", NaN]\n'), (scores, b'["a"]\n')):
        whole = path.read_bytes()
        path.write_bytes(whole + line)
        said = tried.run(expected=exits.BAD_INPUT)
        assert "remove the line, and it is" in said
        path.write_bytes(whole)
    tried.run()
    assert "promoted" == NightFacts.read(tried.night.path).outcome


def test_samples_that_are_gone_after_the_gate_do_not_hide_its_verdict(tried: Tried) -> None:
    tried.run("--until", "gate")
    (draws,) = (tried.folder / "draws").glob("base-*.jsonl")
    draws.write_bytes(b"")
    tried.run()
    facts = NightFacts.read(tried.night.path)
    assert ("promoted", None, []) == (facts.outcome, facts.measured, facts.samples)
    assert facts.verdict is not None
    assert facts.verdict.promote


def test_attempts_that_cannot_be_read_stop_no_night(tried: Tried) -> None:
    """They only tell how long steps took."""
    tried.run("--until", "gate")
    attempts = tried.night.path / "attempts.jsonl"
    attempts.write_bytes(b'garbage\n[1]\n{"step": "train", "seconds": "x"}\n' + attempts.read_bytes() + b"{half")
    tried.run()
    assert tried.night.finished


def test_a_person_is_forgotten_between_any_two_attempts(tried: Tried) -> None:
    """The night goes on without what was theirs: before and after training, drawing, scoring and the gate."""
    for step in ("curate", "train", "draw", "score", "gate"):
        tried.run("--until", step)
        keys = [conversation_key(record.messages or []) for record in Archive(tried.folder / "archive").completions()]
        curated = [json.loads(line)["key"] for line in (tried.night.path / "held_out.jsonl").read_bytes().splitlines()]
        trained = next(key for key in keys if key not in curated)
        said = CliRunner().invoke(
            app,
            ["forget", "--conversation", curated[0], "--conversation", trained],
            env={**dict.fromkeys(variables()), **tried.environ},
        )
        assert 0 == said.exit_code, said.output
    tried.run()
    facts = NightFacts.read(tried.night.path)
    assert facts.outcome in ("promoted", "kept")
    assert facts.samples
    assert facts.measured is not None


def test_a_serving_adapter_that_is_gone_is_told_before_anything_is_trained(
    tried: Tried, redis_server: RedisServer
) -> None:
    """In a plan, too; restoring its folder, or another policy and --new, go on."""
    serve: Callable[..., Any] = lambda *words: CliRunner().invoke(  # noqa: E731
        cli, ["policy", "set", "--reason", "by hand", *words], env={**dict.fromkeys(variables()), **tried.environ}
    )
    name = "rft-20260101-0123456789ab"
    assert 0 == serve("--adapter", name, "--n", "2").exit_code
    for arguments in ([], ["--dry-run"], ["--new"]):
        said = tried.run(*arguments, expected=exits.BAD_INPUT)
        assert f"the policy serves {name}, but" in said
        assert "restore the adapter's folder" in said
    assert [] == runs(tried.folder / "runs")
    assert 60 == Archive(tried.folder / "archive").count(), "what was in the journal was not archived"
    assert 0 == serve("--adapter", "", "--n", "4").exit_code
    tried.run("--until", "curate")
