"""The /classify protocol: encoding of requests, and checks of a server's answers."""

from __future__ import annotations

from contextlib import suppress

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RewardError
from gateway.reward import wire
from gateway.reward.wire import Dialect
from gateway.types import Score

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "index", "probs"]), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "no list of rewards"),
        ([], "no list of rewards"),
        ({"data": None}, "no list of rewards"),
        ({"data": [1]}, "no list of rewards"),
        ({"data": []}, "0 rewards for 1 answers"),
        ({"data": [{"index": 1, "probs": [0.5]}]}, "out of order"),
        ({"data": [{"probs": [0.5]}]}, "out of order"),
    ],
)
def test_an_answer_of_another_shape_is_refused_whole(answer: object, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        wire.scores(Dialect.VLLM, orjson.dumps(answer), 1)


@pytest.mark.parametrize("values", [None, "0.5", [], [1, 2], [None], ["0.5"], [True], [[0.5]]])
def test_a_reward_that_is_not_a_number_is_refused_alone(values: object) -> None:
    body = orjson.dumps({"data": [{"index": 0, "probs": values}, {"index": 1, "probs": [1.5]}]})
    bad, good = wire.scores(Dialect.OURS, body, 2)
    assert isinstance(bad, RewardError)
    assert Score(1.5) == good


def test_sglang_gives_a_bare_list_of_logits() -> None:
    body = orjson.dumps([{"embedding": [-1.5], "meta_info": {}}, {"embedding": [2.5]}])
    assert [Score(-1.5), Score(2.5)] == wire.scores(Dialect.SGLANG, body, 2)


@given(JSON)
def test_any_json_from_a_server_is_a_reward_or_an_error_of_ours(answer: object) -> None:
    for dialect in Dialect:
        try:
            scores = wire.scores(dialect, orjson.dumps(answer), 1)
        except RewardError:
            continue
        assert 1 == len(scores)


@given(JSON)
def test_any_json_from_a_caller_is_parsed_or_refused(body: object) -> None:
    for whole in (body, {"input": body}, {"messages": body}, {"input": [{"messages": [body]}]}):
        with suppress(ValueError):
            assert wire.parse_items(whole)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=5), st.booleans())
def test_our_client_reads_our_servers_answer(rewards: list[float], truncated: bool) -> None:
    body = wire.classification("m", [(Score(reward, truncated), 7) for reward in rewards], activated=False)
    assert [Score(reward, truncated) for reward in rewards] == wire.scores(Dialect.OURS, body, len(rewards))


@pytest.mark.parametrize(
    ("told", "length"), [(2048, 2048), (None, None), (0, None), (-1, None), (True, None), ("2048", None)]
)
def test_the_longest_text_is_the_servers_max_model_len(told: object, length: int | None) -> None:
    body = orjson.dumps({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": told}]})
    assert (Dialect.VLLM, {"m": length}) == wire.served_models(body)


def test_a_model_name_too_long_for_a_header_is_dropped() -> None:
    """It would be sent with every answer."""
    cards = [{"id": "m" * length, "owned_by": "ratchet"} for length in (257, 256)]
    assert (Dialect.OURS, {"m" * 256: None}) == wire.served_models(orjson.dumps({"data": cards}))
