"""A night that is killed at every step and resumed gives the same result, with nothing lost and nothing done twice."""

import hashlib
import json
from pathlib import Path
from typing import Any

from distill.dataset.archive import Archive
from distill.nightly.results import STEPS
from distill.report.facts import NightFacts
from distill.run_dir import runs
from gateway.journal.stream import stream_key
from gateway.settings import RedisSettings
from tests.distill.nightly.attempts import Kill, attempt
from tests.distill.nightly.fleet import PROMPTS, environment, log_races
from tests.redis_server import RedisServer

MOVES = {"collect": 1, "curate": 20, "train": 1, "draw": 30, "score": 5}
"""Advances of a step's progress bar before the kill in its middle."""
KILLS: list[Kill] = [
    kill for step in STEPS for kill in ([(step, MOVES[step])] if step in MOVES else []) + [(step, None)]
]
"""In the middle of long steps, and at the end of each step just before its marker is written."""


def night_of(folder: Path, server: RedisServer, stub_urls: tuple[str, str], model: Path) -> dict[str, str]:
    tgi, rewards = stub_urls
    return environment(folder, tgi_url=tgi, reward_url=rewards, redis_url=server.url, model=model)


def test_a_night_killed_at_every_step_gives_the_same_result(
    tmp_path: Path,
    redis_server: RedisServer,
    redis_settings: RedisSettings,
    stub_urls: tuple[str, str],
    model: Path,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    outcomes = []
    for folder, kills in ((whole, []), (broken, KILLS)):
        folder.mkdir()
        redis_server.restart(empty=True)
        variables = night_of(folder, redis_server, stub_urls, model)
        log_races(redis_server, redis_settings)
        for kill in kills:
            assert -9 == attempt(variables, kill=kill), kill
        assert 0 == attempt(variables), (folder / "attempts.log").read_text()
        outcomes.append(outcome(folder, redis_server, redis_settings))
    assert outcomes[0] == outcomes[1]
    assert all(sum(counts) > 0 for counts in zip(*(cost[1:3] for cost in outcomes[0]["tokens"]), strict=True))
    assert ("promoted", PROMPTS) == (outcomes[0]["outcome"], outcomes[0]["archived"])
    # The first kill comes while collecting, before there is a night.
    assert len(KILLS) - 1 == NightFacts.read(runs(broken / "runs")[0].path).resumed


def outcome(folder: Path, server: RedisServer, settings: RedisSettings) -> dict[str, Any]:
    """Return all results that must not depend on how often the night was killed."""
    (run,) = runs(folder / "runs")
    facts = NightFacts.read(run.path)
    draws = [
        path.read_bytes().splitlines()
        for path in sorted([*folder.glob("draws/*-*.jsonl"), *run.path.glob("draws/rft*")])
    ]
    assert all(len(lines) == len(set(lines)) for lines in draws), "something was drawn or scored twice"
    with server.client() as client:
        history: Any = client.lrange(f"{settings.key_prefix}:policy:history", 0, -1)
        left: Any = client.xlen(stream_key(settings.key_prefix))
    policies = [json.loads(document) for document in history]
    return {
        "outcome": facts.outcome,
        "archived": Archive(folder / "archive").count(),
        "left in Redis": left,
        "curated": [(run.path / name).read_bytes() for name in ("examples.jsonl", "held_out.jsonl")],
        "losses": facts.trained.loss if facts.trained else None,
        "draws": [sorted(hashlib.sha256(line).hexdigest() for line in lines) for lines in draws],
        "tokens": [(cost.step, cost.drawn_tokens, cost.scored_tokens, cost.reused_draws) for cost in facts.costs],
        "verdict": (run.path / "verdict.json").read_bytes(),
        "policies": [(p["version"], p["adapter"], p["n"], p["canary"]["adapter"], p["canary"]["n"]) for p in policies],
        "adapters": sorted(path.name for path in (folder / "adapters").iterdir()),
        "samples": facts.samples,
    }
