"""The store of samples: one file a policy, no sample is drawn twice, and sets are read whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DataError, EvaluationError
from distill.evaluation import sampling
from distill.evaluation.prompts import Prompt
from distill.evaluation.sample_store import adopt, answers_alike, count_missing, extend, read_sets, sample_file
from distill.evaluation.samples import Sample, SamplePlan, read_samples
from gateway.settings import BackendSettings
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.tgi import TgiStub

TALK = Prompt(
    [
        {"role": "user", "content": "Name a tree."},
        {"role": "assistant", "content": "Oak."},
        {"role": "user", "content": "Another."},
    ],
)
PROMPTS = [Prompt.of_text("Name a tree."), TALK]
PLAN = SamplePlan(PROMPTS, (0.5, 1.0), count=2, max_tokens=8)


def backend(stub: TgiStub) -> BackendSettings:
    return BackendSettings(urls=(stub.url,))


BASE: dict[str, Any] = {"base": "base", "served_by": "tgi", "adapter": None, "max_tokens": 128}


def test_the_file_name_depends_on_everything_that_an_answer_depends_on(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"base": "other"},
        {"served_by": "llamacpp"},
        {"adapter": "rft-1"},
        {"max_tokens": 64},
    ]
    first, *others = (sample_file(tmp_path, **BASE | change) for change in [{}, *changes])
    assert 5 == len({first, *others})
    assert first == sample_file(tmp_path, **BASE)


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ({}, "base-c833d5181ffc.jsonl"),
        ({"behaviour": "b1"}, "base-05b0aa76d09d.jsonl"),
        ({"base": "", "served_by": "llamacpp", "adapter": "a/b c", "max_tokens": 64}, "a_b_c-03e2a19f3051.jsonl"),
        (
            {"base": "", "served_by": "llamacpp", "adapter": "n" * 101, "max_tokens": 64},
            f"{'n' * 100}-d6c4a0c6b339.jsonl",
        ),
    ],
)
def test_a_policy_finds_its_file_of_earlier_releases(policy: dict[str, Any], name: str) -> None:
    """The names on disk: another name for the same policy would sample everything again."""
    assert name == sample_file(Path("draws"), **BASE | policy).relative_to("draws").as_posix()


async def test_more_prompts_and_samples_extend_the_file(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    async with TgiStub() as stub:
        few = SamplePlan(PROMPTS[:1], (0.5,), 1, 8)
        await extend(backend(stub), few, path, concurrency=2)
        [first] = read_samples(path)
        assert 7 == count_missing(PLAN, path)
        added: list[Sample] = []
        assert set() == await extend(backend(stub), PLAN, path, concurrency=2, on_sample=added.append)
    assert (7, 0) == (len(added), count_missing(PLAN, path))
    assert [first, *added] == read_samples(path)


async def test_a_conversation_is_sampled_with_all_its_messages(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    async with TgiStub() as stub:
        await extend(backend(stub), PLAN, path, concurrency=1)
        lengths = {request.body.count(b'"role"') for request in stub.state.requests}
    assert {1, 3} == lengths
    by_temperature = read_sets(PLAN, path)
    assert [0.5, 1.0] == list(by_temperature)
    assert [PROMPTS, PROMPTS] == [[row[0].prompt for row in rows] for rows in by_temperature.values()]
    assert all([0, 1] == [draw.index for draw in row] for rows in by_temperature.values() for row in rows)


async def test_each_sample_is_reported_once_and_may_take_longer_than_a_callers_request(tmp_path: Path) -> None:
    added: list[Sample] = []
    async with TgiStub(Knobs(latency_ms=300.0)) as stub:
        hasty = BackendSettings(urls=(stub.url,), request_timeout_s=0.1)
        await extend(hasty, PLAN, tmp_path / "draws.jsonl", concurrency=8, on_sample=added.append)
    assert 8 == len({sample.place for sample in added}) == len(added)


async def test_the_adapter_is_requested_by_its_name(tmp_path: Path) -> None:
    async with TgiStub() as stub:
        plan = SamplePlan(PROMPTS[:1], (1.0,), 1, 8, adapter="rft-1")
        await extend(backend(stub), plan, tmp_path / "draws.jsonl", concurrency=1)
        assert b'"model":"rft-1"' in stub.state.requests[0].body.replace(b'": "', b'":"')


def test_missing_samples_are_counted_and_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    assert 8 == count_missing(PLAN, path)
    path.touch()
    with pytest.raises(DataError, match="lacks 8 samples"):
        read_sets(PLAN, path)


async def test_a_prompt_that_the_backend_refuses_is_left_out_and_returned(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    long = Prompt.of_text("word " * 100)
    async with TgiStub(Knobs(max_input_tokens=40, max_total_tokens=64)) as stub:
        refused = await extend(backend(stub), SamplePlan([long, *PROMPTS], (1.0,), 2, 8), path, concurrency=1)
    assert {long.key} == refused
    assert 4 == len(read_samples(path))


async def test_a_failing_backend_ends_sampling_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_RETRY_WAIT_S", 0.0)
    async with TgiStub(Knobs(fault=Fault.STATUS, fault_status=500, fault_probability=1.0)) as stub:
        with pytest.raises(EvaluationError, match="sampling stopped: "):
            await extend(backend(stub), PLAN, tmp_path / "draws.jsonl", concurrency=1)


async def test_samples_of_the_sample_command_are_adopted_once(tmp_path: Path) -> None:
    source, store = tmp_path / "old.jsonl", tmp_path / "store" / "base.jsonl"
    async with TgiStub() as stub:
        await extend(backend(stub), PLAN, source, concurrency=1)
    whole = source.read_bytes()
    source.write_bytes(whole + b'{"prompt": "still being wri')
    assert 8 == adopt(source, store, max_tokens=8)
    assert 0 == adopt(source, store, max_tokens=8)
    assert whole == store.read_bytes()
    with pytest.raises(DataError, match="not sampled with 4 tokens"):
        adopt(source, tmp_path / "other.jsonl", max_tokens=4)


@pytest.mark.parametrize(
    ("finish_reason", "tokens", "taken"),
    [
        ("length", 7, False),  # cut at another, lower limit
        ("length", 8, True),
        ("length", 9, False),
        ("stop", 7, True),
        ("stop", 8, True),
        ("stop", 9, False),
    ],
)
def test_only_samples_with_the_same_limit_are_adopted(
    tmp_path: Path, finish_reason: str, tokens: int, taken: bool
) -> None:
    source, store = tmp_path / "old.jsonl", tmp_path / "base.jsonl"
    source.write_bytes(Sample(Prompt.of_text("Name a tree."), 1.0, 0, 0, "Oak.", finish_reason, tokens).to_line())
    if taken:
        assert 1 == adopt(source, store, max_tokens=8)
    else:
        with pytest.raises(DataError, match="was not sampled with 8 tokens at most"):
            adopt(source, store, max_tokens=8)


@pytest.mark.parametrize(("others", "alike"), [(0, True), (4, True), (5, False), (8, False)])
async def test_a_file_is_of_the_same_model_if_half_of_a_few_answers_are_the_same(
    tmp_path: Path, others: int, alike: bool
) -> None:
    """Eight of its answers are sampled again, from their own seeds."""
    path = tmp_path / "draws.jsonl"
    async with TgiStub() as stub:
        await extend(backend(stub), PLAN, path, concurrency=1)
        kept = read_samples(path)
        changed = [replace(each, text="another") if place < others else each for place, each in enumerate(kept)]
        path.write_bytes(b"".join(sample.to_line() for sample in changed))
        before = len(stub.state.requests)
        assert alike == await answers_alike(backend(stub), path, None, max_tokens=8)
        assert 8 == len(stub.state.requests) - before


async def test_a_file_without_answers_is_not_of_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    path.write_bytes(Sample(Prompt.of_text("Name a tree."), 1.0, 0, 0, "", "stop", 0).to_line())
    async with TgiStub() as stub:
        assert not await answers_alike(backend(stub), path, None, max_tokens=8)
