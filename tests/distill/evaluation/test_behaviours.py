"""Recognition of behaviours by the answers to probes: at the bounds, and with real servers."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DataError, EvaluationError
from distill.evaluation import answer_probes, reward_probes
from distill.evaluation.answer_probes import (
    LEAST_AGREEMENT,
    MOST_DISTANCE_NATS,
    SEEDS,
    answers_to_probes,
    distance_nats,
    same_answers,
)
from distill.evaluation.behaviours import Behaviour, last_behaviour, recognise
from distill.evaluation.reward_probes import rewards_of_probes, same_rewards, tolerance
from gateway.errors import RewardError
from gateway.reward.remote import RemoteScorer
from gateway.settings import BackendSettings, RewardSettings
from tests.stubs.knobs import Knobs
from tests.stubs.reward import RewardFault, RewardKnobs, RewardStub
from tests.stubs.tgi import TgiStub

OF = {"model": "judge"}
REWARDS = [3.0, -3.0, 3.0, -3.0]  # standard deviation 3: they may differ by .06


def same(one: Any, other: Any) -> bool:
    return bool(one == other)


def test_a_behaviour_is_recognised_by_its_answers_under_its_name(tmp_path: Path) -> None:
    """A new name is no change; another behaviour under a known name is; an earlier behaviour is recognised again."""
    first = recognise(tmp_path, "rewards", OF, [1], same)
    assert Behaviour(first.id, False) == recognise(tmp_path, "rewards", OF, [1], same)
    second = recognise(tmp_path, "rewards", OF, [2], same)
    assert (True, True) == (second.changed, second.id != first.id)
    assert second.id == last_behaviour(tmp_path, "rewards", OF)
    assert Behaviour(first.id, False) == recognise(tmp_path, "rewards", OF, [1], same)
    assert first.id == last_behaviour(tmp_path, "rewards", OF)
    other = recognise(tmp_path, "rewards", {"model": "other"}, [1], same)
    assert (False, True) == (other.changed, other.id not in (first.id, second.id))
    assert "" == last_behaviour(tmp_path, "answers", OF)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"of": {"model": "judge"}}', "\0"])
def test_a_file_of_behaviours_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    behaviour = recognise(tmp_path, "rewards", OF, [1.0], same_rewards)
    path = tmp_path / "probes" / f"rewards-{behaviour.id}.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path.name} cannot be read: remove it"):
        recognise(tmp_path, "rewards", OF, [1.0], same_rewards)
    path.write_text(json.dumps({"of": OF, "behaviour": [{"greedy": 1}]}))
    with pytest.raises(DataError, match=f"{path.name} cannot be read: remove it"):
        recognise(tmp_path, "rewards", OF, [{"greedy": [], "sampled": None}], same_answers)


@pytest.mark.parametrize(("off", "expected"), [(0.0599, True), (0.0601, False), (-0.0601, False), (10.0, False)])
def test_rewards_are_the_same_within_a_fiftieth_of_their_spread(off: float, expected: bool) -> None:
    assert tolerance(REWARDS) == pytest.approx(0.06)
    assert expected == same_rewards(REWARDS, [*REWARDS[:3], REWARDS[3] + off])
    assert expected == same_rewards(REWARDS, [reward + off for reward in REWARDS])


def test_a_probe_that_is_refused_is_a_value_of_its_own() -> None:
    assert same_rewards([None, *REWARDS], [None, *REWARDS])
    assert not same_rewards([None, *REWARDS], [0.0, *REWARDS])
    assert not same_rewards(REWARDS, REWARDS[:3])
    assert same_rewards([1.0, 1.0], [1.0, 1.0 + 1e-7])
    assert not same_rewards([1.0, 1.0], [1.0, 1.1])


async def test_rewards_of_probes_come_from_a_real_server() -> None:
    async with RewardStub(RewardKnobs()) as stub:
        scorer = RemoteScorer(RewardSettings(url=stub.url))
        try:
            first = await rewards_of_probes(scorer)
            assert len(reward_probes.PROBES) == len(first)
            assert same_rewards(first, await rewards_of_probes(scorer))
            stub.knobs.update({"shift": 0.1})
            assert not same_rewards(first, await rewards_of_probes(scorer))
            stub.knobs.update({"fault": RewardFault.STATUS, "fault_probability": 1.0})
            with pytest.raises(RewardError):
                await rewards_of_probes(scorer)
        finally:
            await scorer.aclose()


def answer(*tokens: str, off: float = 0.0) -> list[tuple[str, dict[str, float]]]:
    return [(token, {token: -0.5 + off, "other": -1.5 - off, "rare": -9.0 - 9 * off}) for token in tokens]


@pytest.mark.parametrize(
    ("off", "expected"), [(MOST_DISTANCE_NATS * 0.99, True), (MOST_DISTANCE_NATS * 1.01, False), (1.0, False)]
)
def test_log_probabilities_of_likely_tokens_distinguish_weights(off: float, expected: bool) -> None:
    ours, theirs = [answer("a", "b")], [answer("a", "b", off=off)]
    assert distance_nats(ours, theirs) == pytest.approx(off)
    one, other = ([{"greedy": greedy, "sampled": None}] for greedy in (ours, theirs))
    assert expected == same_answers(one, other)


def test_answers_are_compared_up_to_the_first_difference() -> None:
    """After a near tie the two texts may differ."""
    one, other = answer("a") + answer("c", off=0.01), [*answer("a"), ("x", answer("c")[0][1]), *answer("z", off=3.0)]
    assert distance_nats([one], [other]) == pytest.approx(math.sqrt(0.01**2 / 2))
    assert math.inf == distance_nats([None], [answer("a")])
    assert math.inf == distance_nats([[]], [answer("a")])
    assert 0.0 == distance_nats([None, []], [None, []])


@pytest.mark.parametrize("equal", [SEEDS, math.ceil(LEAST_AGREEMENT * SEEDS), math.ceil(LEAST_AGREEMENT * SEEDS) - 1])
def test_sampled_answers_distinguish_samplers(equal: int) -> None:
    ours = [str(seed) for seed in range(SEEDS)]
    theirs = [text if place < equal else "other" for place, text in enumerate(ours)]
    one, other = ([{"greedy": [], "sampled": sampled}] for sampled in (ours, theirs))
    assert (equal >= LEAST_AGREEMENT * SEEDS) == same_answers(one, other)
    assert not same_answers(one, [{"greedy": [], "sampled": None}])


def test_fleets_with_alike_replicas_are_alike() -> None:
    a, b = ({"greedy": [answer("a", off=off)], "sampled": None} for off in (0.0, 1.0))
    assert same_answers([a], [a, a])
    assert same_answers([a, b], [b, b, a])
    assert not same_answers([a, a], [a, b])
    assert not same_answers([a, b], [a])


async def test_replicas_are_asked_one_by_one() -> None:
    async with TgiStub() as one, TgiStub() as other:
        fleet = BackendSettings(urls=(one.url, other.url))
        both = await answers_to_probes(fleet)
        assert same_answers(both, await answers_to_probes(BackendSettings(urls=(one.url,))))
        for knob in ("weights", "sampler"):
            other.knobs.update({knob: "another"})
            assert not same_answers(both, await answers_to_probes(fleet)), knob
            other.knobs.update({knob: ""})
        assert same_answers(both, json.loads(json.dumps(await answers_to_probes(fleet))))


async def test_a_server_that_ignores_seeds_shows_nothing_by_sampled_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TgiStub() as stub:
        draws = iter(range(10**6))
        behind = stub._behind_the_name
        monkeypatch.setattr(
            stub, "_behind_the_name", lambda request: behind(request) + str(next(draws)).encode() * request.do_sample
        )
        ((first,), (second,)) = [await answers_to_probes(BackendSettings(urls=(stub.url,))) for _ in range(2)]
    assert first["sampled"] is None
    assert same_answers([first], [second])


async def test_a_prompt_that_the_backend_refuses_is_a_behaviour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every chat template has a system message."""
    long: list[Any] = [{"role": "user", "content": "word " * 200}]
    monkeypatch.setattr(answer_probes, "PROBES", (answer_probes.PROBES[0], long))
    async with TgiStub(Knobs(max_input_tokens=100, max_total_tokens=120)) as stub:
        (found,) = await answers_to_probes(BackendSettings(urls=(stub.url,)))
    assert [False, True] == [answer is None for answer in found["greedy"]]


async def test_an_unreachable_replica_is_named_without_its_password() -> None:
    with pytest.raises(EvaluationError, match=r"^sampling stopped: 127\.0\.0\.1:9 did not answer the probes: "):
        await answers_to_probes(BackendSettings(urls=("http://user:secret@127.0.0.1:9",)))


def test_the_behaviour_seen_last_is_newer_than_all_others_by_any_clock(tmp_path: Path) -> None:
    """A clock that was set back, or that stands still between two writes."""
    first, second = (recognise(tmp_path, "rewards", OF, [value], same) for value in (1, 2))
    paths = [tmp_path / "probes" / f"rewards-{each.id}.json" for each in (first, second)]
    ahead_ns = 4_000_000_000 * 10**9
    os.utime(paths[1], ns=(ahead_ns, ahead_ns))
    recognise(tmp_path, "rewards", OF, [1], same)
    assert ahead_ns + 1 == paths[0].stat().st_mtime_ns
    assert first.id == last_behaviour(tmp_path, "rewards", OF)
    recognise(tmp_path, "rewards", OF, [1], same)
    assert ahead_ns + 1 == paths[0].stat().st_mtime_ns


def test_a_behaviours_id_is_the_digest_of_its_document(tmp_path: Path) -> None:
    document = b'{"behaviour": [1], "of": {"adapter": "", "model": "judge"}}'
    found = recognise(tmp_path, "rewards", {"model": "judge", "adapter": ""}, [1], same)
    assert hashlib.blake2b(document, digest_size=6).hexdigest() == found.id
    assert document == (tmp_path / "probes" / f"rewards-{found.id}.json").read_bytes()


def test_the_known_behaviour_is_the_first_in_a_comparison(tmp_path: Path) -> None:
    compared: list[tuple[Any, Any]] = []

    def differ(known: Any, found: Any) -> bool:
        compared.append((known, found))
        return False

    for value in (1, 2):
        recognise(tmp_path, "rewards", OF, [value], differ)
    assert [([1], [2])] == compared
