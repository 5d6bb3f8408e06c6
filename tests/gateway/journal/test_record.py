"""Records hold the race, ``store: false`` keeps content out, and no content of a caller breaks them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import JournalError
from gateway.journal.record import CompletionRecord, decode, encode, feedback_record
from gateway.types import Sampling, Selection, Timings
from tests.gateway.journal.records import CALL, MESSAGES, SAMPLING, completion

hostile_text = st.text(st.characters(exclude_categories=()), max_size=20)  # with lone surrogates
whole_text = st.text(max_size=20)  # without surrogates, Hypothesis's default
json_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | whole_text
)
hostile_scalars = st.none() | st.integers() | st.floats() | hostile_text


def nested(scalars: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=5,
    )


json_values = nested(json_scalars, whole_text)
hostile_values = nested(hostile_scalars, hostile_text)


def test_a_record_holds_the_whole_race() -> None:
    """All that the night needs is there by name."""
    record = completion()
    winner, call, failed = record.candidates
    assert (record.key_id, record.model, record.policy_version, record.adapter) == ("4f2a", "ratchet", 4, "rft-1")
    assert (record.n_asked, record.n_ordinary, record.n_run, record.n_returned) == (3, 2, 3, 1)
    assert (record.winners, record.selection, record.reward_model) == ([0], Selection.SCORED, "judge")
    assert (record.exploration, record.exploration_probability, record.deadline_hit) == (True, 0.02, True)
    assert (record.seed, record.n_messages, record.messages, record.sampling) == (7, 2, MESSAGES, SAMPLING)
    assert dataclasses.astuple(record.usage) == (20, 5, 14)
    assert record.timings == Timings(1.0, 80.0, 3.0, 2.0, 90.0)
    assert (winner.text, winner.reward, winner.tokens, winner.seed, winner.latency_ms) == (
        "secret answer",
        1.5,
        5,
        11,
        80.0,
    )
    assert (call.text, call.tool_calls, call.n_tool_calls, call.finish_reason) == (None, [CALL], 1, "tool_calls")
    assert call.prompt_truncated
    assert (failed.error, failed.text, failed.tokens, failed.finish_reason) == ("BackendFailed", None, 0, None)


def test_a_record_survives_a_round_trip() -> None:
    assert completion() == decode(encode(completion()))


def test_no_error_message_is_recorded() -> None:
    """A backend's message may quote a prompt; only the error's class is recorded."""
    assert b"secret message" not in encode(completion())


def test_store_false_keeps_all_content_out_and_all_counts_in() -> None:
    """No text of prompt, answer, tools, stops, formats, user or metadata; all numbers."""
    stored, bare = completion(), completion(store=False)
    assert b"secret" in encode(stored)
    assert b"secret" not in encode(bare)
    assert bare.sampling == Sampling(temperature=0.7, max_tokens=64, seed=7)
    assert (bare.store, bare.messages, bare.user, bare.metadata) == (False, None, None, None)
    assert [c.tokens for c in stored.candidates] == [c.tokens for c in bare.candidates]
    assert [c.reward for c in stored.candidates] == [c.reward for c in bare.candidates]
    assert [c.n_tool_calls for c in stored.candidates] == [c.n_tool_calls for c in bare.candidates]
    assert (stored.usage, stored.n_messages, stored.winners) == (bare.usage, bare.n_messages, bare.winners)


def test_store_false_keeps_a_plain_tool_choice() -> None:
    """``auto`` contains no name."""
    record = dataclasses.replace(completion(store=False), sampling=Sampling(tool_choice="auto"))
    assert record == decode(encode(record))


@given(
    text=whole_text,
    tools=st.lists(st.dictionaries(whole_text, json_values, max_size=2), max_size=2),
    comment=whole_text,
)
def test_values_that_json_can_hold_are_unchanged(text: str, tools: list[dict[str, Any]], comment: str) -> None:
    """Any text and any JSON value, in every place where a caller can put it."""
    record = dataclasses.replace(
        completion(),
        messages=[{"role": "user", "content": text}],
        sampling=Sampling(stop=(text,), tools=tuple(tools)),
        metadata={text: tools},
    )
    feedback = feedback_record(completion_id="chatcmpl-1", rating=-1, comment=comment)
    assert record == decode(encode(record))
    assert feedback == decode(encode(feedback))


@given(text=hostile_text, value=hostile_values)
def test_no_value_of_a_caller_breaks_a_record(text: str, value: object) -> None:
    """Lone surrogates, huge numbers and NaN are replaced; encoding the result again changes nothing."""
    record = dataclasses.replace(
        completion(),
        messages=[{"role": "user", "content": text}],
        user=text,
        metadata={text: value},
    )
    read = decode(encode(record))
    assert read == decode(encode(read))
    assert isinstance(read, CompletionRecord)
    assert record.candidates == read.candidates


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        (2**64, float(2**64)),
        (-(10**30), -1e30),
        (10**400, None),
        (["\udfff", (2**70,)], ["\ufffd", [float(2**70)]]),
        (float("nan"), None),
        ({"\ud800": 1}, {"\ufffd": 1}),
    ],
)
def test_values_that_json_cannot_hold_are_replaced(sent: object, kept: object) -> None:
    """As the module's docstring says."""
    read = decode(encode(dataclasses.replace(completion(), metadata={"k": sent})))
    assert isinstance(read, CompletionRecord)
    assert {"k": kept} == read.metadata


def test_nesting_beyond_the_limit_is_cut() -> None:
    """A schema a thousand levels deep loses its lowest levels; the record is kept."""
    deep: object = "bottom"
    for _ in range(1_000):
        deep = [deep]
    read = decode(encode(dataclasses.replace(completion(), metadata={"k": deep})))
    assert isinstance(read, CompletionRecord)
    assert read.metadata is not None
    assert b"bottom" not in orjson.dumps(read.metadata)
    assert completion().messages == read.messages


def test_an_older_reader_reads_a_newer_record() -> None:
    """Unknown fields, outside and inside, are ignored."""
    document = orjson.loads(encode(completion())) | {"schema_version": 2, "new": [1]}
    document["candidates"][0]["new"] = {}
    read = decode(orjson.dumps(document))
    assert dataclasses.replace(completion(), schema_version=2) == read


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00\xff", b"{", b"[]", b"null", b'"secret"', b'{"kind": "other"}', b'{"kind": ["completion"]}'],
)
def test_garbage_is_a_clear_error(data: bytes) -> None:
    """The message tells the problem and quotes nothing."""
    with pytest.raises(JournalError, match="unreadable record") as caught:
        decode(data)
    assert "secret" not in caught.value.message


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_record_or_a_clear_error(data: bytes) -> None:
    with contextlib.suppress(JournalError):
        decode(data)


@given(st.data(), st.booleans())
def test_a_record_with_any_field_changed_is_refused_or_can_be_encoded_again(data: st.DataObject, rated: bool) -> None:
    """The error of a refused record quotes nothing of it."""
    record = feedback_record(completion_id="chatcmpl-1", rating=1) if rated else completion()
    document = orjson.loads(encode(record))
    for name in data.draw(st.sets(st.sampled_from(sorted(document)), min_size=1, max_size=3)):
        document[name] = data.draw(ANY_JSON | st.just("secret"))
    error = ""
    try:
        read = decode(json.dumps(document).encode())
    except JournalError as refused:
        error = refused.message
    else:
        assert read.id == decode(encode(read)).id
    assert "secret" not in error


def test_a_record_with_a_bad_field_names_the_field_not_its_content() -> None:
    """An operator finds the field and sees no prompt."""
    document = orjson.loads(encode(completion())) | {"n_asked": "secret", "messages": "secret"}
    with pytest.raises(JournalError, match=r"unreadable completion record .*messages: .*n_asked: ") as caught:
        decode(orjson.dumps(document))
    assert "secret" not in caught.value.message
    assert caught.value.__cause__ is None


def test_two_ratings_of_one_completion_are_two_records() -> None:
    """Each feedback has its own id, so neither is dropped as a copy of the other."""
    first, second = (feedback_record(completion_id="chatcmpl-1", rating=1) for _ in range(2))
    assert first.id != second.id


def test_the_first_version_1_record_stays_readable() -> None:
    """Archives and spools outlive releases: every release must decode this text."""
    written = (
        b'{"id":"chatcmpl-9","time_ms":1700000000000,"key_id":null,"model":"ratchet","store":true,"n_messages":1,'
        b'"messages":[{"role":"user","content":"hi"}],"sampling":{"temperature":null,"top_p":0.9,"max_tokens":8,'
        b'"stop":["x"],"seed":null,"frequency_penalty":null,"presence_penalty":null,"logit_bias":null,'
        b'"logprobs":false,"top_logprobs":null,"tools":[],"tool_choice":null,"parallel_tool_calls":null,'
        b'"response_format":null},"user":null,"metadata":null,"policy_version":0,"adapter":null,'
        b'"reward_model":null,"n_asked":1,"n_ordinary":1,"n_run":1,"n_returned":1,"seed":5,"candidates":[{"index":0,'
        b'"seed":5,"text":"ho","tool_calls":null,"n_tool_calls":0,"finish_reason":"length","tokens":1,"reward":null,'
        b'"prompt_truncated":false,"cut_at_tokens":null,"latency_ms":3.5,"error":null}],"winners":[0],'
        b'"selection":"single","exploration":false,"exploration_probability":0.0,"deadline_hit":false,'
        b'"scoring_error":null,"usage":{"prompt_tokens":3,"returned_tokens":1,"generated_tokens":1},'
        b'"timings":{"queue_ms":0.0,"generate_ms":3.5,"score_ms":0.0,"journal_ms":0.0,"total_ms":4.0},'
        b'"kind":"completion","schema_version":1}'
    )
    read = decode(written)
    assert isinstance(read, CompletionRecord)
    assert ("ho", "length", Selection.SINGLE) == (
        read.candidates[0].text,
        read.candidates[0].finish_reason,
        read.selection,
    )
    again = orjson.loads(encode(read))
    added = [(candidate.pop("unusable"), candidate.pop("reasoned")) for candidate in again["candidates"]]
    assert [(None, None)] == added
    assert orjson.loads(written).items() <= again.items()
    assert ("stable", None, False) == (read.arm, read.arm_failed, read.n_from_caller)
