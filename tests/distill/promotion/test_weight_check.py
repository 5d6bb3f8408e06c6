"""The weight check against stubs of TGI, which serves the base under any name that it does not know."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import PromotionError
from distill.promotion.adapter import WEIGHT_CHECK_FILE, Adapter, BaseFacts, Manifest
from distill.promotion.weight_check import (
    BASE,
    PROMPTS,
    ExpectedAnswers,
    ExpectedToken,
    ReplicaCheck,
    RivalComparison,
    answer_prompt,
    check_replicas,
    compare,
    standing_check,
)
from gateway.backend.pool import BackendPool
from gateway.settings import BackendSettings
from tests.distill.evaluation.test_greedy import FakePool
from tests.gateway.backend.rawserver import listening, ok, saying
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.tgi import TgiStub
from tests.waiting import until

NAME = "rft-20261122-0123456789ab"


@pytest.fixture
async def knowing() -> AsyncIterator[TgiStub]:
    """A replica that has the adapter."""
    async with TgiStub(Knobs(adapters=(NAME,))) as stub:
        yield stub


@pytest.fixture
async def adapter(tmp_path: Path, knowing: TgiStub) -> Adapter:
    """An adapter whose expected answers are the stub's, with and without it."""
    async with BackendPool(backend(knowing.url)) as pool:
        answers = []
        for prompt in PROMPTS:
            own, base = [await answer_prompt(pool, prompt, name) for name in (NAME, "no-such-adapter")]
            places = zip(own, base, strict=False)
            answers.append([ExpectedToken(token, {"": likely, BASE: other}) for (token, likely), (_, other) in places])
    (tmp_path / WEIGHT_CHECK_FILE).write_bytes(ExpectedAnswers(PROMPTS, answers).encode())
    facts = BaseFacts("base", "llama", layers=2, heads=4, kv_heads=2)
    return Adapter(tmp_path, Manifest(NAME, facts, "run", 4, "2026-11-22T00:00:00+00:00", {}, 8))


def backend(*urls: str) -> BackendSettings:
    return BackendSettings(urls=urls)


def host(url: str) -> str:
    return url.removeprefix("http://")


def completion(logprobs: object, text: str = "Paris.") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    body = json.dumps({"choices": [choice | {"logprobs": logprobs}], "usage": usage}).encode()
    return ok(body, b"Connection: close")


async def test_a_replica_that_has_the_adapter_passes(adapter: Adapter, knowing: TgiStub) -> None:
    (seen,) = await check_replicas(adapter, backend(knowing.url))
    (comparison,) = seen.comparisons
    assert (BASE, 1.0) == (comparison.rival, comparison.votes)
    assert 1.0 == pytest.approx(comparison.position)
    assert (0.0, seen.tokens_expected) == (seen.distance_nats, seen.tokens_followed)


async def test_the_standing_check_tells_the_adapter_from_the_base(adapter: Adapter, knowing: TgiStub) -> None:
    """The check that gateways repeat, with three prompts and ten tokens a place."""
    check = standing_check(adapter)
    assert 3 == len(check)
    assert max(len(place) for one in check for place in (*one.adapter, *one.base)) <= 10
    async with TgiStub(Knobs()) as without, BackendPool(backend(knowing.url, without.url)) as pool:
        pool.check_weights(NAME, check)
        await until(lambda: not pool._standing_check._checks)
        assert [False, True] == [state.lacks_adapter for state in pool.states()]


async def test_the_answers_are_requested_together(adapter: Adapter) -> None:
    """llama.cpp computes one adapter's answers at a time: each alone would wait for other traffic every time."""
    async with TgiStub(Knobs(adapters=(NAME,), latency_ms=300)) as stub:
        await check_replicas(adapter, backend(stub.url))
        assert 1 < stub.state.peak_generating


async def test_tgi_that_serves_the_base_under_an_unknown_name_is_caught_and_named(
    adapter: Adapter, knowing: TgiStub
) -> None:
    """It answers every request without an error: only the answers differ."""
    async with TgiStub(Knobs()) as ignorant:
        with pytest.raises(
            PromotionError, match=rf"other weights than {NAME}'s answer under its name at {host(ignorant.url)}: "
        ) as it:
            await check_replicas(adapter, backend(knowing.url, ignorant.url))
        assert len(PROMPTS) == ignorant.state.finished
    assert host(knowing.url) not in str(it.value)


@pytest.mark.parametrize("fault", [Fault.GARBAGE, Fault.EMPTY, Fault.HALF_JSON, Fault.HTML, Fault.STATUS])
async def test_a_replica_that_answers_nonsense_is_named(adapter: Adapter, knowing: TgiStub, fault: Fault) -> None:
    async with TgiStub(Knobs(adapters=(NAME,), fault=fault, fault_every=1)) as broken:
        with pytest.raises(PromotionError, match=rf"{host(broken.url)} did not answer the weight check of {NAME}: "):
            await check_replicas(adapter, backend(knowing.url, broken.url))


async def test_a_replica_that_is_down_is_named(adapter: Adapter, knowing: TgiStub) -> None:
    """No other replica answers for it: each replica is checked on its own."""
    async with TgiStub(Knobs()) as gone:
        pass
    with pytest.raises(PromotionError, match=rf"{host(gone.url)} did not answer .*could not be reached"):
        await check_replicas(adapter, backend(knowing.url, gone.url))


@pytest.mark.parametrize(
    ("logprobs", "problem"),
    [
        (None, "came without log-probabilities"),
        ({"content": []}, "came without log-probabilities"),
        ({"content": None}, "came without log-probabilities"),
        ({"content": [{"token": "Paris", "logprob": None}]}, "log-probabilities that are not numbers"),
        ({"content": [{"token": "Paris", "logprob": "likely"}]}, "logprobs that make no sense"),
        ({"content": [{"token": 5, "logprob": -1.0}]}, "logprobs that make no sense"),
        ({"content": [{"token": "Paris", "logprob": math.nan}]}, "could not be read"),
    ],
)
async def test_an_answer_without_logprobs_is_no_evidence(adapter: Adapter, logprobs: object, problem: str) -> None:
    async with listening(saying(completion(logprobs))) as url:
        expected = rf"{host(url)} did not answer the weight check of {NAME}: .*{problem}"
        with pytest.raises(PromotionError, match=expected):
            await check_replicas(adapter, backend(url))


async def test_a_replica_with_empty_answers_fails_the_check(adapter: Adapter) -> None:
    async with listening(saying(completion({"content": []}, text=""))) as url:
        with pytest.raises(
            PromotionError, match=rf"other weights than {NAME}'s answer .* 0\.00 on the way .* 0 of \d+ greedy tokens"
        ):
            await check_replicas(adapter, backend(url))


async def test_missing_expected_answers_are_an_error(adapter: Adapter) -> None:
    (adapter.folder / WEIGHT_CHECK_FILE).unlink()
    with pytest.raises(PromotionError, match=r"canary\.json cannot be read: No such file"):
        await check_replicas(adapter, backend("http://127.0.0.1:1"))


PLACE: dict[str, Any] = {"token": "a", "likely": {"": {"a": -0.1}, BASE: {"b": -0.2}}}


def expectation(*places: object, prompts: object = ("p",)) -> dict[str, object]:
    return {"prompts": prompts, "answers": [list(places)]}


def test_expected_answers_are_read_as_written() -> None:
    expected = ExpectedAnswers.decode(json.dumps(expectation(PLACE, PLACE)).encode())
    assert (expected, [BASE]) == (ExpectedAnswers.decode(expected.encode()), expected.rivals)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        5,
        {"prompts": [], "answers": []},
        expectation(),
        expectation(PLACE, prompts=["p", "q"]),
        expectation(PLACE, prompts=None),
        expectation("a"),
        expectation({"token": "a"}),
        expectation(PLACE | {"likely": 5}),
        expectation(PLACE | {"likely": {}}),
        expectation(PLACE | {"likely": {"": {"a": -0.1}}}),
        expectation(PLACE | {"likely": {BASE: {"a": -0.1}}}),
        expectation(PLACE | {"likely": {"": {}, BASE: {"a": -0.1}}}),
        expectation(PLACE | {"likely": {"": {"a": "x"}, BASE: {"a": -0.1}}}),
        expectation(PLACE, PLACE | {"likely": PLACE["likely"] | {"another": {"a": -0.1}}}),
    ],
    ids=str,
)
def test_malformed_expected_answers_are_refused(document: object) -> None:
    with pytest.raises(PromotionError, match=r"canary\.json does not hold the expected answers"):
        ExpectedAnswers.decode(json.dumps(document).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["", BASE, "a"]), inner, max_size=3),
    max_leaves=6,
)


@given(st.binary(max_size=20) | st.builds(lambda likely: _encoded({"token": "a", "likely": likely}), JSON))
def test_any_content_is_parsed_as_expected_answers_or_refused(content: bytes) -> None:
    try:
        expected = ExpectedAnswers.decode(content)
    except PromotionError:
        return
    assert BASE in expected.rivals
    assert all(place.likely[model] for answer in expected.answers for place in answer for model in ("", BASE))


def _encoded(place: object) -> bytes:
    return json.dumps(expectation(place)).encode()


@given(
    st.lists(st.tuples(*[st.floats(-8, -0.1)] * 2), min_size=1, max_size=4).filter(
        lambda pairs: any(abs(one - other) > 0.1 for one, other in pairs)
    ),
    st.floats(0, 1),
)
def test_the_position_is_the_share_of_the_way_from_rival_to_adapter(
    pairs: list[tuple[float, float]], share: float
) -> None:
    """Half of an adapter is at one half; 0 is the rival and 1 the adapter."""
    expected = ExpectedAnswers(["p"], [[ExpectedToken("t", {"": listed(pairs, 0), BASE: listed(pairs, 1)})]])
    served = {f"t{i}": base + share * (own - base) for i, (own, base) in enumerate(pairs)}
    (comparison,) = compare("here", expected, [[("t", served)]]).comparisons
    assert share == pytest.approx(comparison.position, abs=1e-6)


def listed(pairs: list[tuple[float, float]], side: int) -> dict[str, float]:
    return {f"t{i}": pair[side] for i, pair in enumerate(pairs)}


@pytest.mark.parametrize("served", [{}, {"a": -8.0, "b": -9.0}, {"a": math.nan, "b": math.nan}])
def test_other_weights_off_the_line_fail_by_their_distance(served: dict[str, float]) -> None:
    """Without comparable tokens, or if all likely tokens are unlikely, the check fails."""
    own = {"a": -0.5, "b": -1.5}
    expected = ExpectedAnswers(["p"], [[ExpectedToken("a", {"": own, BASE: {"a": -1.5, "b": -0.5}})]])
    assert compare("here", expected, [[("a", own)]]).passed
    assert not compare("here", expected, [[("a", served)]]).passed


def answered(*shares: float) -> ReplicaCheck:
    """The check of a replica with these positions between base (0) and adapter (1), one a prompt."""
    own, base = {"a": -0.5, "b": -1.5}, {"a": -1.0, "b": -1.0}
    expected = ExpectedAnswers(
        [f"p{i}" for i in range(len(shares))], [[ExpectedToken("a", {"": own, BASE: base})] for _ in shares]
    )
    return compare(
        "here",
        expected,
        [[("a", {token: base[token] + share * (own[token] - base[token]) for token in own})] for share in shares],
    )


@pytest.mark.parametrize(
    ("shares", "passed"),
    [((1.4, 0.6, 0.4), True), ((1.4, 0.4, 0.4), False), ((0.6, 0.6, 0.6), True), ((1.4, 1.4, 0.4, 0.4), False)],
)
def test_two_prompts_of_three_must_be_nearer_to_the_adapter(shares: tuple[float, ...], passed: bool) -> None:
    """One prompt with a large position could raise the mean alone."""
    assert 0.5 < answered(*shares).comparisons[0].position < 1.5
    assert passed == answered(*shares).passed


@pytest.mark.parametrize(("place", "passed"), [(0.49, False), (0.51, True), (1.49, True), (1.51, False)])
def test_half_an_adapter_passes_and_less_or_double_do_not(place: float, passed: bool) -> None:
    assert passed == answered(place, place, place).passed


@pytest.mark.parametrize(("off_nats", "passed"), [(0.39, True), (0.41, False)])
def test_a_replica_may_differ_by_so_much_from_the_adapter(off_nats: float, passed: bool) -> None:
    """Off the line between adapter and base, where the position does not change."""
    own, base = {"a": -1.0, "b": -3.0, "c": -1.0}, {"a": -3.0, "b": -1.0, "c": -1.0}
    expected = ExpectedAnswers(["p"], [[ExpectedToken("a", {"": own, BASE: base})]])
    served = {"a": -1.0, "b": -3.0, "c": -1.0 - off_nats * math.sqrt(3)}
    seen = compare("here", expected, [[("a", served)]])
    assert off_nats == pytest.approx(seen.distance_nats)
    assert passed == seen.passed


@pytest.mark.parametrize(("prompts", "kept"), [(2, 2), (3, 3), (4, 3)])
@pytest.mark.parametrize(("listed_tokens", "kept_tokens"), [(9, 9), (10, 10), (11, 10)])
def test_the_standing_check_has_three_prompts_and_their_ten_likeliest_tokens(
    adapter_folder: Adapter, prompts: int, kept: int, listed_tokens: int, kept_tokens: int
) -> None:
    own = {f"t{i}": -10.0 + i for i in range(listed_tokens)}
    base = {f"b{i}": -5.0 - i for i in range(listed_tokens)}
    names = [f"p{i}" for i in range(prompts)]
    expected = ExpectedAnswers(names, [[ExpectedToken(name, {"": own, BASE: base})] for name in names])
    (adapter_folder.folder / WEIGHT_CHECK_FILE).write_bytes(expected.encode())
    check = standing_check(adapter_folder)
    assert names[:kept] == [each.prompt for each in check]
    assert [(name,) for name in names[:kept]] == [each.tokens for each in check]
    likeliest = {f"t{i}": -10.0 + i for i in range(listed_tokens - kept_tokens, listed_tokens)}
    assert ({(len(each.adapter), len(each.base)) for each in check}) == {(1, 1)}
    assert likeliest == check[0].adapter[0]
    assert {f"b{i}": -5.0 - i for i in range(kept_tokens)} == check[0].base[0]


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Adapter:
    """An adapter whose expected answers a test writes."""
    facts = BaseFacts("base", "llama", layers=2, heads=4, kv_heads=2)
    return Adapter(tmp_path, Manifest(NAME, facts, "run", 4, "2026-11-22T00:00:00+00:00", {}, 8))


@pytest.mark.parametrize(("logprob", "counts"), [(-4.01, False), (-4.0, True), (-3.99, True)])
def test_only_likely_tokens_count_for_the_distance(logprob: float, counts: bool) -> None:
    """One nat off at a token that is likely enough for the adapter; noise grows with rarity."""
    own, base = {"a": logprob}, {"a": -1.0}
    expected = ExpectedAnswers(["p"], [[ExpectedToken("a", {"": own, BASE: base})]])
    seen = compare("here", expected, [[("a", {"a": logprob - 1.0})]])
    assert pytest.approx(1.0 if counts else 0.0) == seen.distance_nats


@pytest.mark.parametrize(("drawn", "followed"), [(["a", "b", "c"], 3), (["a", "x", "c"], 1), (["x"], 0), (["a"], 1)])
def test_tokens_are_counted_up_to_the_first_other_one(drawn: list[str], followed: int) -> None:
    """The first different token still counts: both texts are the same before it."""
    place = {"": {"a": -1.0}, BASE: {"a": -2.0}}
    expected = ExpectedAnswers(["p"], [[ExpectedToken(token, place) for token in "abc"]])
    served = [(token, {"a": -1.0 if index <= followed else -9.0}) for index, token in enumerate(drawn)]
    seen = compare("here", expected, [served])
    assert (followed, 3) == (seen.tokens_followed, seen.tokens_expected)
    assert pytest.approx(1.0) == seen.comparisons[0].position
    assert 0.0 == seen.distance_nats
    assert f"; {followed} of 3 greedy tokens as expected" in str(seen)


def position(served: dict[str, float], own: dict[str, float], base: dict[str, float]) -> float:
    expected = ExpectedAnswers(["p"], [[ExpectedToken("a", {"": own, BASE: base})]])
    return compare("here", expected, [[("a", served)]]).comparisons[0].position


@pytest.mark.parametrize(
    ("served", "own", "expected"),
    [
        ({"c": -7.0}, {"a": -30.0}, 0.5),  # not listed: as likely as the least likely one, and no less than -12
        ({"c": -7.0}, {"a": -12.0}, 0.5),
        ({"c": -40.0}, {"a": -30.0}, 1.0),
        ({"c": -3.0}, {"a": -0.5, "b": -4.0}, 0.5),
        ({"c": -3.0}, {"a": -0.5, "c": -4.0}, 0.5),
        ({"d": -3.0}, {"a": -4.0}, 0.0),  # listed by neither
        ({"c": -3.0, "d": -3.0}, {"a": -4.0}, 0.5),
        ({"c": -3.0, "a": -4.0}, {"a": -4.0, "c": -4.0}, 0.5),
    ],
)
def test_tokens_that_are_not_listed_count_as_the_least_likely_listed_ones(
    served: dict[str, float], own: dict[str, float], expected: float
) -> None:
    assert pytest.approx(expected) == position(served, own, {"c": -2.0} | ({"a": -4.0} if "a" in served else {}))


@pytest.mark.parametrize(("served", "distance_nats"), [(-3.0, 2.0), (-11.9, 10.9), (-12.0, 11.0), (-12.1, 11.0)])
def test_noise_below_the_least_log_probability_adds_no_distance(served: float, distance_nats: float) -> None:
    expected = ExpectedAnswers(["p"], [[ExpectedToken("a", {"": {"a": -1.0}, BASE: {"a": -2.0}})]])
    assert pytest.approx(distance_nats) == compare("here", expected, [[("a", {"a": served})]]).distance_nats


def test_the_distance_is_the_root_mean_square_over_all_prompts() -> None:
    place = ExpectedToken("a", {"": {"a": -1.0, "b": -2.0}, BASE: {"a": -2.0, "b": -1.0}})
    served = [[("a", {"a": -2.0, "b": -2.0})], [("a", {"a": -1.0, "b": -5.0})]]
    seen = compare("here", ExpectedAnswers(["p", "q"], [[place], [place]]), served)
    assert pytest.approx(((1 + 0 + 0 + 9) / 4) ** 0.5) == seen.distance_nats


def test_each_rival_has_its_own_position_and_votes() -> None:
    """On the first prompt the replica is the adapter, on the second the rival, which the base resembles little."""
    models = {"": {"a": -1.0}, BASE: {"a": -3.0}, "rft-0": {"a": -2.0}}
    expected = ExpectedAnswers(["p", "q"], [[ExpectedToken("a", models)]] * 2)
    seen = compare("here", expected, [[("a", {"a": -1.0})], [("a", {"a": -2.0})]])
    found = [(each.rival, each.position, each.votes) for each in seen.comparisons]
    assert [(BASE, 0.75, 0.5), ("rft-0", 0.5, 0.5)] == found


@pytest.mark.parametrize(
    ("place", "votes", "passed"),
    [
        (0.5, 2 / 3, True), (1.5, 2 / 3, True), (1.0, 1.0, True),
        (0.49, 1.0, False), (1.51, 1.0, False), (1.0, 0.66, False),
    ],
)  # fmt: skip
def test_position_and_votes_may_lie_on_their_bounds(place: float, votes: float, passed: bool) -> None:
    assert passed == RivalComparison(BASE, place, votes).passed


@pytest.mark.parametrize(
    ("nats", "places", "passed"),
    [
        (0.4, [1.0], True),
        (0.41, [1.0], False),
        (0.0, [1.0, 0.0], False),
        (0.0, [0.0, 1.0], False),
        (0.0, [1.0, 1.0], True),
    ],
)
def test_a_replica_must_pass_against_every_rival(nats: float, places: list[float], passed: bool) -> None:
    comparisons = [RivalComparison(BASE, place, 1.0) for place in places]
    assert passed == ReplicaCheck("here", comparisons, nats, 1, 1).passed


def test_a_check_is_described_in_numbers() -> None:
    seen = ReplicaCheck("here", [RivalComparison(BASE, 0.987, 0.9), RivalComparison("rft-0", 0.5, 0.5)], 0.126, 7, 8)
    assert (
        "here: 0.99 on the way from the base model (0) to the adapter (1), 90% of the prompts nearer to the adapter; "
        "0.50 on the way from rft-0 (0) to the adapter (1), 50% of the prompts nearer to the adapter; "
        "0.13 nats from the adapter; 7 of 8 greedy tokens as expected"
    ) == str(seen)


def test_half_way_is_no_vote_for_the_adapter() -> None:
    assert [0.0, 1.0] == [answered(place).comparisons[0].votes for place in (0.5, 0.5625)]


def test_expected_answers_are_written_as_they_are_read_by_people() -> None:
    place = ExpectedToken("né", {"": {"né": -0.5}, BASE: {"a": -1.0}})
    written = ExpectedAnswers(["p"], [[place]]).encode().decode()
    assert '{"token": "né", "likely": {"": {"né": -0.5}, "the base model": {"a": -1.0}}}' in written
    assert written.startswith('{"prompts": ["p"], "answers": [[{')


def test_every_prompt_has_its_answer() -> None:
    place = ExpectedToken("a", {"": {"a": -1.0}, BASE: {"a": -2.0}})
    expected = ExpectedAnswers(["p", "q"], [[place], [place]])
    for served in (1, 3):
        with pytest.raises(ValueError, match="zip"):
            compare("here", expected, [[("a", {"a": -1.0})]] * served)


@pytest.mark.parametrize("name", [None, NAME])
async def test_eight_tokens_are_asked_for(name: str | None) -> None:
    pool = FakePool("", None)
    assert [] == await answer_prompt(cast(BackendPool, pool), "Name a tree.", name)
    [(prompt, _)] = pool.calls
    assert ([{"role": "user", "content": "Name a tree."}], name) == (prompt.messages, prompt.adapter)
    assert 8 == prompt.sampling.max_tokens
