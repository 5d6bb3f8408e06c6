"""A fault around a night gives one line and an exit code, and the night continues when the fault is repaired."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill import exits
from distill.dataset.archive import Archive
from distill.nightly.start import only_night
from distill.report.facts import NightFacts
from distill.run_dir import runs
from gateway.journal.stream import stream_key
from gateway.settings import RedisSettings
from tests.distill.nightly.attempts import Kill, attempt
from tests.distill.nightly.fleet import environment, log_races
from tests.redis_server import RedisServer
from tests.stubs.process import StubProcess


@pytest.fixture
def stubs() -> Iterator[tuple[StubProcess, StubProcess]]:
    started = StubProcess("tests.stubs.tgi"), StubProcess("tests.stubs.reward")
    for stub in started:
        stub.start()
    yield started
    for stub in started:
        stub.stop()


@pytest.fixture
def variables(
    tmp_path: Path,
    redis_server: RedisServer,
    redis_settings: RedisSettings,
    stubs: tuple[StubProcess, StubProcess],
    model: Path,
) -> dict[str, str]:
    tgi, rewards = stubs
    log_races(redis_server, redis_settings)
    return environment(tmp_path, tgi_url=tgi.url, reward_url=rewards.url, redis_url=redis_server.url, model=model)


def output(folder: Path) -> str:
    """Return the output of the last attempt on one line."""
    return " ".join((folder / "attempts.log").read_text().split())


def test_without_redis_no_night_starts(tmp_path: Path, variables: dict[str, str], redis_server: RedisServer) -> None:
    redis_server.kill()
    assert exits.UNAVAILABLE == attempt(variables)
    assert "the serving policy cannot be read: Redis said" in output(tmp_path)
    assert [] == runs(tmp_path / "runs")
    assert "ratchet_night_exit_code 75.0" in (tmp_path / "night.prom").read_text()


def test_a_night_continues_after_its_backend_and_reward_model_were_away(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    """Each attempt stops at the same step, and the last one finishes the night."""
    nowhere = "http://127.0.0.1:9"
    assert exits.UNAVAILABLE == attempt({**variables, "GATEWAY_BACKEND__URLS": nowhere})
    assert "sampling stopped: " in output(tmp_path)
    assert exits.UNAVAILABLE == attempt({**variables, "GATEWAY_REWARD__URL": nowhere})
    assert "the reward model is not ready" in output(tmp_path)
    assert exits.FINISHED == attempt(variables), output(tmp_path)
    (run,) = runs(tmp_path / "runs")
    assert (3, True) == (run.attempts, run.finished)


def test_a_full_disk_ends_the_attempt_with_one_line(tmp_path: Path, variables: dict[str, str]) -> None:
    """A limit on file size simulates it."""
    assert exits.FINISHED == attempt(variables, ["--until", "train"]), output(tmp_path)
    assert exits.BAD_INPUT == attempt({**variables, "ATTEMPT_FILE_BYTES": "4000"})
    assert ".safetensors: File too large" in output(tmp_path)
    assert exits.FINISHED == attempt(variables), output(tmp_path)


def test_a_corrupt_archive_is_named_and_the_night_continues_when_it_is_restored(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    assert exits.FINISHED == attempt(variables, ["--until", "collect"]), output(tmp_path)
    (part,) = (tmp_path / "archive").glob("day=*/*.parquet")
    content = part.read_bytes()
    part.chmod(0o644)
    part.write_bytes(content[:100])
    assert exits.BAD_INPUT == attempt(variables)
    assert str(part) in output(tmp_path)
    part.write_bytes(content)
    assert exits.FINISHED == attempt(variables, ["--until", "curate"]), output(tmp_path)


def test_an_unreadable_record_is_kept_and_reported_and_stops_nothing(
    tmp_path: Path, variables: dict[str, str], redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    with redis_server.client() as client:
        client.xadd(stream_key(redis_settings.key_prefix), {"id": "chatcmpl-bad", "data": b"{}"})
    assert exits.FINISHED == attempt(variables, ["--until", "curate"]), output(tmp_path)
    assert "a record that this version cannot read is kept in" in output(tmp_path)
    (run,) = runs(tmp_path / "runs")
    assert 1 == (run.result("collect") or {})["unreadable"]


def test_another_night_and_other_settings_are_refused(tmp_path: Path, variables: dict[str, str]) -> None:
    assert exits.FINISHED == attempt(variables, ["--until", "collect"]), output(tmp_path)
    with only_night(tmp_path / "runs"):
        assert exits.ANOTHER_NIGHT == attempt(variables)
    assert "another night runs in" in output(tmp_path)
    other = {**variables, "DISTILL_TRAINING__RANK": "8"}
    assert exits.BAD_INPUT == attempt(other)
    assert "begun with other settings (training.rank)" in output(tmp_path)
    assert exits.FINISHED == attempt(other, ["--new", "--until", "collect"]), output(tmp_path)
    assert 2 == len(runs(tmp_path / "runs"))


def test_a_night_with_too_few_winners_finishes_without_training(tmp_path: Path, variables: dict[str, str]) -> None:
    assert exits.FINISHED == attempt({**variables, "DISTILL_NIGHT__MIN_EXAMPLES": "1000"}), output(tmp_path)
    assert "1000 are needed" in output(tmp_path)
    (run,) = runs(tmp_path / "runs")
    assert run.result("train") is None
    assert (run.path / "report.html").exists()


def test_a_finished_night_can_be_resumed_until_any_step_and_stays_finished(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    few = {**variables, "DISTILL_NIGHT__MIN_EXAMPLES": "1000"}
    assert exits.FINISHED == attempt(few), output(tmp_path)
    (run,) = runs(tmp_path / "runs")
    finished = run.result("report")
    (tmp_path / "attempts.log").unlink()
    for arguments, ending in ((["--until", "curate"], "stopped after curate"), ([], str(run.path / "report.html"))):
        assert exits.FINISHED == attempt(few, ["--resume", run.id, *arguments]), output(tmp_path)
        assert ending in output(tmp_path)
    assert finished == run.result("report")
    assert [run.id] == [each.id for each in runs(tmp_path / "runs")]


def test_a_night_with_a_worse_model_finishes_without_promotion(tmp_path: Path, variables: dict[str, str]) -> None:
    assert exits.FINISHED == attempt({**variables, "ATTEMPT_ADAPTERS": "dull"}), output(tmp_path)
    (run,) = runs(tmp_path / "runs")
    facts = NightFacts.read(run.path)
    assert ("kept", None, None) == (facts.outcome, run.result("publish"), facts.promoted)
    assert facts.verdict is not None
    assert facts.measured is not None
    assert {3, 2, 1} == {test.n for test in facts.verdict.best.tests}
    assert facts.measured.guardrails
    assert facts.headline in output(tmp_path)
    assert [] == list((tmp_path / "adapters").glob("rft-*"))


@pytest.mark.parametrize("kill", [("train", 1), ("draw", 30), ("score", 5)])
def test_a_step_stopped_by_sigterm_can_be_resumed(tmp_path: Path, variables: dict[str, str], kill: Kill) -> None:
    assert exits.TERMINATED == attempt({**variables, "ATTEMPT_SIGNAL": "15"}, kill=kill), output(tmp_path)
    assert "stopped by SIGTERM" in output(tmp_path)
    assert exits.FINISHED == attempt(variables, ["--until", kill[0]]), output(tmp_path)


def test_a_dry_run_prints_a_plan_and_changes_nothing(
    tmp_path: Path, variables: dict[str, str], redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    assert exits.FINISHED == attempt(variables, ["--until", "collect"]), output(tmp_path)
    before = everything(tmp_path)
    assert exits.FINISHED == attempt(variables, ["--dry-run"]), output(tmp_path)
    assert before == everything(tmp_path)
    assert "resume run" in output(tmp_path)
    assert "archive 0 records that wait in Redis" in output(tmp_path)


def everything(folder: Path) -> dict[str, tuple[int, float]]:
    """Return size and time of every file but the tests' log."""
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names if name != "attempts.log"]
    return {str(file): (file.stat().st_size, file.stat().st_mtime) for file in files}


def test_a_night_that_always_fails_does_not_stop_collecting(
    tmp_path: Path, variables: dict[str, str], redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    """Each attempt archives new records, also if the night cannot start or another one runs."""
    broken = {**variables, "GATEWAY_BACKEND__URLS": "http://127.0.0.1:9"}
    assert exits.UNAVAILABLE == attempt(broken)
    assert 60 == Archive(tmp_path / "archive").count()
    log_races(redis_server, redis_settings, start=100, count=20)
    assert exits.UNAVAILABLE == attempt(broken)
    log_races(redis_server, redis_settings, start=200, count=20)
    assert exits.BAD_INPUT == attempt({**broken, "DISTILL_TRAINING__RANK": "8"})
    log_races(redis_server, redis_settings, start=300, count=20)
    with only_night(tmp_path / "runs"):
        assert exits.ANOTHER_NIGHT == attempt(broken)
    assert 120 == Archive(tmp_path / "archive").count()
    with redis_server.client() as client:
        assert 0 == client.xlen(stream_key(redis_settings.key_prefix))
    (run,) = runs(tmp_path / "runs")
    assert 80 == (run.result("collect") or {})["archived"]


def test_a_failed_collecting_pass_shows_in_the_exit_code_of_a_night_that_continues(
    tmp_path: Path, variables: dict[str, str], redis_server: RedisServer
) -> None:
    """The night has its records already and need not wait for Redis, but its end must not look like a success."""
    assert exits.FINISHED == attempt(variables, ["--until", "collect"]), output(tmp_path)
    redis_server.kill()
    assert exits.UNAVAILABLE == attempt(variables, ["--until", "curate"])
    assert "collecting failed: " in output(tmp_path)
    (run,) = runs(tmp_path / "runs")
    assert run.result("curate") is not None
