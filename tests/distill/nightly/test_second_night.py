"""A second night measures against the serving adapter, and against the base as it was before the first night."""

import json
from pathlib import Path

from typer.testing import CliRunner

from distill.promotion.adapter import Adapter, adapters_in
from distill.run_dir import runs
from gateway.__main__ import cli
from gateway.settings import RedisSettings, variables
from tests.distill.nightly.attempts import attempt
from tests.distill.nightly.fleet import PROMPTS, environment, log_races
from tests.redis_server import RedisServer


def test_the_second_night_keeps_what_the_base_was_before_the_first(
    tmp_path: Path,
    redis_server: RedisServer,
    redis_settings: RedisSettings,
    stub_urls: tuple[str, str],
    model: Path,
) -> None:
    """The base is sampled again on new prompts only, and the new adapter stores the N before the first night."""
    tgi, rewards = stub_urls
    night = environment(tmp_path, tgi_url=tgi, reward_url=rewards, redis_url=redis_server.url, model=model)
    log_races(redis_server, redis_settings)
    assert 0 == attempt(night)
    (first,) = runs(tmp_path / "runs")
    adapter, n_new = (first.result(step) or {} for step in ("publish", "gate"))
    assert list((tmp_path / "draws").glob(f"{adapter['adapter']}-*.jsonl")), "what the new adapter drew was not kept"
    base_draws = next((tmp_path / "draws").glob("base-*.jsonl"))
    drawn = base_draws.read_bytes()
    serve = ["policy", "set", "--reason", "promoted", "--canary-share", "0"]
    serve += ["--adapter", adapter["adapter"], "--n", str(n_new["n_new"])]
    served = CliRunner().invoke(cli, serve, env={**dict.fromkeys(variables()), **night})
    assert 0 == served.exit_code, served.output
    log_races(redis_server, redis_settings, start=PROMPTS)
    assert 0 == attempt(night), (tmp_path / "attempts.log").read_text()
    second = runs(tmp_path / "runs")[-1]
    verdict = json.loads((second.path / "verdict.json").read_bytes())
    assert (4, n_new["n_new"]) == (verdict["n_base"], verdict["n_now"])
    assert base_draws.read_bytes().startswith(drawn), "the base was drawn again on the first night's prompts"
    assert len(drawn) < len(base_draws.read_bytes()), "the base was not drawn on the second night's prompts"
    (candidate,) = adapters_in(second.path / "candidates")
    assert (4, second.id) == (Adapter.open(candidate).manifest.n_base, Adapter.open(candidate).manifest.run)
