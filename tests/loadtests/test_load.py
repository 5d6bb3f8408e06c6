"""The load test: the summary of a run, its limits, and the users on Locust."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.load.plot import figure, page
from loadtests.load.run import Phase, run
from loadtests.load.summary import Limits, Request, broken, over_time, percentile, read, summarise
from tests.redis_server import RedisServer
from tests.serving import Serve

LIMITS = Limits(p99_ms=500.0, refused_p99_ms=50.0, least_requests=2)


def request(name: str = "chat", at_s: float = 0.0, ms: float = 100.0, problem: str = "") -> Request:
    return Request(at_s, name, ms, 200, "chatcmpl-1", problem)


def test_the_file_of_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The columns are those that Locust's process writes."""
    path = tmp_path / "run.csv"
    path.write_text("at_s,name,ms,status,id,problem\n1.5,chat,12.25,200,chatcmpl-1,\n2.0,stream,3.0,0,,OSError\n")
    assert [
        Request(1.5, "chat", 12.25, 200, "chatcmpl-1", ""),
        Request(2.0, "stream", 3.0, 0, "", "OSError"),
    ] == read(path)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """Nothing is interpolated, so a slow request is never averaged away."""
    values = [float(value) for value in range(1, 101)]
    assert [50.0, 99.0, 100.0] == [percentile(values, percent) for percent in (50, 99, 100)]
    assert 7.0 == percentile([7.0], 1)


def test_a_run_is_summed_up_by_kind() -> None:
    """Counts, rates and times of each kind have a line of their own; the rate is over the whole run."""
    lines = summarise([request(at_s=0.0), request(at_s=1.0, problem="status 502"), request("stream", at_s=1.9)])
    assert ["chat", "stream"] == [line.name for line in lines]
    assert (2, 1, {"status 502": 1}) == (lines[0].requests, lines[0].failed, lines[0].problems)
    assert pytest.approx(1.0) == lines[0].per_s
    assert [] == summarise([])


@pytest.mark.parametrize(
    ("requests", "missing", "complaint"),
    [
        ([], 0, "there were no requests"),
        ([request()], 0, "chat: only 1 requests"),
        ([request(), request(problem="status 502")], 0, "chat: 1 of 2 failed"),
        ([request(), request(ms=501.0)], 0, "chat: 99 % took up to 501 ms, over 500 ms"),
        ([request("bad caller"), request("bad caller", ms=51.0)], 0, "over 50 ms"),
        ([request(), request()], 3, "3 acknowledged records are missing in Redis"),
    ],
)
def test_a_limit_that_is_not_kept_fails_the_run(requests: list[Request], missing: int, complaint: str) -> None:
    """Each limit has its complaint."""
    found = broken(summarise(requests), LIMITS, missing=missing)
    assert 1 == len(found)
    assert complaint in found[0]


def test_a_run_within_its_limits_has_no_complaints() -> None:
    """A share of failures may be allowed."""
    lines = summarise([request(), request(), request(), request(problem="status 429")])
    assert [] == broken(lines, Limits(500.0, 50.0, failed_share=0.25), missing=0)[1:]
    assert [] == broken(lines, Limits(500.0, 50.0, failed_share=0.25, least_requests=4), missing=0)


def test_a_run_over_time_is_counted_by_when_requests_began() -> None:
    """Seconds without a request are left out, not drawn as fast."""
    series = over_time([request(at_s=10.0), request(at_s=10.5, ms=300.0), request(at_s=12.0)])
    assert [(0.0, 2.0, 100.0, 300.0), (2.0, 1.0, 100.0, 100.0)] == series
    assert [] == over_time([])


def test_the_page_is_self_contained_and_escapes_its_texts() -> None:
    """One file: no script, no address; the machine's name is escaped."""
    drawn = figure("Answers", "a second", [("median", "new", [(0.0, 1.0), (5.0, 2.0)])])
    text = page("Under load", {"cpu": "<2 cores>"}, [drawn])
    assert "&lt;2 cores&gt;" in text
    assert "<svg" in text
    assert "http" not in text
    assert "<svg" in figure("Nothing", "a second", [("", "new", [])])


async def test_locust_keeps_its_rate_and_accounts_for_every_request(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The open loop: every completion in its file is in the journal."""
    served = await serve()
    requests = await run(served.url, Phase("open", 10.0, 2.0, best_of=2), tmp_path)
    answered = {one.id for one in requests if one.name == "arrival"}
    assert [] == [one.problem for one in requests if one.problem]
    assert answered
    assert answered == {record.id for record in await served.records(len(answered))}
    assert {"arrival", "arrival, first piece"} == {one.name for one in requests}


async def test_every_kind_of_user_gets_what_it_expects(serve: Serve, tmp_path: Path) -> None:
    """The closed loop: bad callers get their refusal, those who hang up nothing, all others a whole answer."""
    served = await serve()
    requests = await run(served.url, Phase("closed", 16.0, 6.0, best_of=2), tmp_path)
    assert [] == [(one.name, one.problem) for one in requests if one.problem]
    assert {"chat", "stream", "burst", "long prompt", "hang up", "bad caller"} <= {one.name for one in requests}
