"""Sampling against the TGI stub: the plan's order, resuming, retries."""

import json
from pathlib import Path

import pytest

from distill.errors import DataError
from distill.evaluation import sampling
from distill.evaluation.prompts import Prompt, spread
from distill.evaluation.samples import Sample, SamplePlan, read_samples
from distill.evaluation.sampling import sample_missing
from gateway.backend.pool import BackendPool
from gateway.errors import BackendFailed
from gateway.settings import BackendSettings
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.tgi import TgiStub

PROMPTS = [Prompt.of_text("Name three trees.", "list"), Prompt.of_text("How do I sleep well?", "advice")]
PLAN = SamplePlan(PROMPTS, temperatures=(0.5, 1.0), count=2, max_tokens=8)


async def sample_from(stub: TgiStub, path: Path, plan: SamplePlan = PLAN) -> int:
    async with BackendPool(BackendSettings(urls=(stub.url,))) as backend:
        return await sample_missing(backend, plan, path, concurrency=1)


def test_temperatures_take_turns_within_a_prompt() -> None:
    """At any point of a run the temperatures are balanced."""
    places = [(prompt.kind, temperature, index) for prompt, temperature, index in PLAN.places()]
    first = [("list", 0.5, 0), ("list", 1.0, 0), ("list", 0.5, 1), ("list", 1.0, 1)]
    assert first == places[:4]
    assert 8 == len(set(places))


def test_each_sample_has_its_own_seed_that_depends_on_its_place_alone() -> None:
    seeds = [PLAN.seed_of(*place) for place in PLAN.places()]
    assert 8 == len(set(seeds))
    assert seeds == [SamplePlan(PROMPTS, (1.0, 0.5), 9, 64).seed_of(*place) for place in PLAN.places()]
    assert seeds != [SamplePlan(PROMPTS, (0.5, 1.0), 2, 8, seed=1).seed_of(*place) for place in PLAN.places()]


def test_prompts_are_spread_over_kinds() -> None:
    prompts = [
        Prompt.of_text(f"{kind}{i}", kind) for kind, count in (("a", 3), ("b", 1), ("c", 2)) for i in range(count)
    ]
    assert ["a0", "b0", "c0", "a1", "c1"] == [prompt.text for prompt in spread(prompts, 5)]
    assert 6 == len(spread(prompts, 100))
    assert [] == spread([], 3)


async def test_every_sample_of_the_plan_is_drawn_and_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "draws.jsonl"
    async with TgiStub() as stub:
        assert 8 == await sample_from(stub, path)
        asked = [json.loads(request.body) for request in stub.state.requests]
    kept = read_samples(path)
    assert list(PLAN.places()) == [(d.prompt, d.temperature, d.index) for d in kept]
    assert [(d.temperature, d.seed, 8) for d in kept] == [(a["temperature"], a["seed"], a["max_tokens"]) for a in asked]
    assert all(d.text and d.completion_tokens and d.finish_reason in {"stop", "length"} for d in kept)


async def test_a_second_run_draws_only_missing_samples(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    async with TgiStub() as stub:
        await sample_from(stub, path)
        whole = path.read_bytes()
        assert 0 == await sample_from(stub, path)
        assert whole == path.read_bytes()
        # Killed in the middle of the sixth line.
        lines = whole.splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
        assert 5 == len(read_samples(path))
        assert 3 == await sample_from(stub, path)
    assert whole == path.read_bytes()


async def test_a_temporary_failure_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_RETRY_WAIT_S", 0.0)
    async with TgiStub(Knobs(fault=Fault.STATUS, fault_status=500, fault_next=2)) as stub:
        assert 8 == await sample_from(stub, tmp_path / "draws.jsonl")


async def test_a_lasting_failure_ends_the_run_and_keeps_earlier_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_RETRY_WAIT_S", 0.0)
    path = tmp_path / "draws.jsonl"
    async with TgiStub() as stub:
        await sample_from(stub, path, SamplePlan(PROMPTS[:1], (0.5, 1.0), 1, 8))
        stub.knobs.update({"fault": Fault.STATUS, "fault_status": 500, "fault_probability": 1.0})
        with pytest.raises(BackendFailed):
            await sample_from(stub, path)
    assert 2 == len(read_samples(path))


def test_a_line_that_is_not_a_sample_is_named(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    good = Sample(Prompt.of_text("p", "list"), 1.0, 0, 1, "secret answer", "stop", 3)
    path.write_bytes(good.to_line() + b'{"prompt": "p"}\n')
    with pytest.raises(DataError, match=r"draws\.jsonl, line 2"):
        read_samples(path)
