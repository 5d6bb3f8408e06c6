"""The hostile catalogue, the verdict on its cases, and some of them on real processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtests.hostile.__main__ import attempt
from loadtests.hostile.case import ANSWER, KEY, PROMPT, Answer, Case, words
from loadtests.hostile.catalogue import GROUPS, catalogue
from loadtests.hostile.hostile_stack import Canary, HostileStack
from loadtests.hostile.verdict import Ending, checks, judge

CASE = Case("http-a", "A thing.", words("400,200 single"))
METRICS = "ratchet_candidates_in_flight 0.0\nratchet_journal_lag_records 0.0\n"
ENDING = Ending(True, "", METRICS, 0, (100.0, 101.0), 200.0)
QUICK = (
    "http-cl-te",
    "http-trailer-authorization",
    "http-trailer-endless",
    "json-surrogate-lone",
    "type-model",
    "chat-00-best_of-0",
    "name-http-image",
    "header-id-crlf",
    "key-wrong",
    "feedback-rating-nan",
    "backend-gzip-bomb",
    "backend-json-usage-2-64",
    "backend-sse-separators",
    "backend-redirect-307",
    "reward-nan",
    "schema-billion-tool",
    "schema-circle-format",
    "schema-recursive-format",
    "schema-recursive-tool",
    "redis-policy-version-2-64",
    "redis-says-no-number-anything",
    "redis-record-garbage",
)


def _answer(status: str, body: str = "{}") -> Answer:
    return Answer(f"HTTP/1.1 {status} Whatever\r\n\r\n{body}".encode(), True)


def _error(code: str, message: str = "") -> str:
    return f'{{"error":{{"message":"{message}","type":"x","param":null,"code":"{code}"}}}}'


def test_there_are_hundreds_of_cases_with_name_sentence_and_group() -> None:
    """``--only`` picks by the name, the results file holds the sentence."""
    cases = catalogue(1)
    assert len(cases) >= 200
    assert len(cases) == len({case.id for case in cases})
    assert set(GROUPS) == {case.group for case in cases}
    assert all(case.tried.endswith(".") and case.allowed for case in cases)
    assert set(QUICK) <= {case.id for case in cases}


@pytest.mark.parametrize(
    ("answer", "outcome", "blame"),
    [
        (_answer("400", _error("invalid_value")), "400", "caller"),
        (_answer("502", _error("backend_failed")), "502", "upstream"),
        (_answer("504", _error("deadline_exceeded")), "504", "upstream"),
        (_answer("500", _error("reward_error")), "500", "ours"),
        (_answer("503", _error("not_ready")), "503", "ours"),
        (_answer("200", '{"selection":"single"}'), "200 single", "nobody"),
        (_answer("200", f"an answer that says data: {_error('backend_failed')}"), "200", "nobody"),
        (_answer("200", f"\ndata: {_error('backend_failed')}\n"), "200 error event", "upstream"),
        (_answer("200", f"\ndata: {_error('reward_error')}\n"), "200 error event", "ours"),
        (Answer(_answer("200").raw * 3, False), "200×3", "nobody"),
        (Answer(b"", True), "cut", "nobody"),
        (Answer(b"", False), "silent", "nobody"),
    ],
)
def test_an_answer_has_an_outcome_and_a_party_at_fault(answer: Answer, outcome: str, blame: str) -> None:
    """A 5xx counts as the backend's only if its code says so."""
    assert (outcome, blame) == (answer.outcome, answer.blame)


def test_what_is_not_acceptable_fails_its_case() -> None:
    """A status that is not allowed, a 5xx of ours, a planted word, a gateway that is not well."""
    good = judge(CASE, _answer("400"), 0.1, (100.0, 100.0))
    assert ([], "400") == (good.failures, good.outcome)
    assert ["404 is not acceptable"] == judge(CASE, _answer("404"), 0.1, (1.0, 1.0)).failures
    assert ["500 is not acceptable", "a 5xx of ours"] == judge(CASE, _answer("500"), 0.1, (1.0, 1.0)).failures
    for mark in (PROMPT, KEY, ANSWER):
        answer = _answer("400", _error("invalid_value", mark))
        assert [f"the error contains {mark}"] == judge(CASE, answer, 0.1, (1.0, 1.0)).failures
    assert ["the gateway is not well: why"] == judge(CASE, _answer("400"), 0.1, (1.0, 1.0), "why").failures


@pytest.mark.parametrize(
    "ending",
    [
        replace(ENDING, same_process=False),
        replace(ENDING, log='{"exception": "Traceback (most recent call last):'),
        replace(ENDING, log=PROMPT),
        replace(ENDING, metrics=ENDING.metrics + KEY),
        replace(ENDING, metrics=ENDING.metrics + 'ratchet_errors_total{kind="defect"} 1.0\n'),
        replace(ENDING, metrics=METRICS.replace("in_flight 0", "in_flight 1")),
        replace(ENDING, metrics=METRICS.replace("records 0", "records 1")),
        replace(ENDING, canary_visits=1),
        replace(ENDING, memory_mb=(100.0, 122.0)),
        replace(ENDING, peak_mb=1025.0),
    ],
)
def test_each_failed_check_at_the_end_has_a_complaint(ending: Ending) -> None:
    """Each check has one complaint, and a good end has none."""
    assert 1 == sum(bool(complaint) for complaint in checks(ending).values())
    assert not any(checks(ENDING).values())


async def test_some_of_each_group_are_tried_on_real_processes() -> None:
    """The suite itself works, and faults that it once found stay fixed."""
    async with Canary() as canary, HostileStack(canary) as stack:
        pid = stack.gateway.pid
        rows = [await attempt(stack, case) for case in catalogue(canary.port) if case.id in QUICK]
        await stack.rest()
        memory_mb, peak_mb = stack.memory_mb()
        metrics = await stack.text("/metrics")
        same = stack.gateway.alive and stack.gateway.pid == pid
        ending = Ending(same, stack.log, metrics, canary.visits, (memory_mb, memory_mb), peak_mb)
    assert [] == [f"{row.id}: {failure}" for row in rows for failure in row.failures]
    assert {} == {what: complaint for what, complaint in checks(ending).items() if complaint}
    assert len(QUICK) == len(rows)
