"""The demo on real weights, and its parts."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from gateway.demo import demo, presentation, prompts
from gateway.embedded.redis import RedisServer
from gateway.embedded.serve import EXIT_FAILED, EXIT_OK
from gateway.errors import JournalError, NotReady
from gateway.journal.record import CompletionRecord
from tests.gateway.demo.records import race_record, stream_of


def test_the_demo_shows_its_races_and_reads_them_back(tmp_path: Path) -> None:
    """Two prompts, one of them streamed, on the whole stack; Redis's data still has every race afterwards."""
    out = io.StringIO()
    console = Console(file=out, width=120)
    demo_prompts = prompts.load()[:2]
    assert EXIT_OK == demo.run(console, demo_prompts, data_dir=tmp_path, candidates=2, max_tokens=12)
    shown = out.getvalue()
    for expected in (demo_prompts[0].prompt, "· streamed", "without best-of-N", "2 races with 4 candidates", "best of"):
        assert expected in shown
    with RedisServer(tmp_path / "redis") as server:
        records = stream_of(server.url)
    assert [prompt.prompt for prompt in demo_prompts] == [(record.messages or [])[0]["content"] for record in records]
    assert [2, 2] == [len(record.candidates) for record in records]


def test_races_without_all_their_rewards_fail_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """A race without all rewards would make the comparison of N unfair: it is left out and counted."""
    console = Console()
    scored, fallback = race_record(rewards=[1.0, 3.0]), race_record(rewards=[2.0, None])
    assert 1 == demo.show_curve(console, [scored, fallback], candidates=2)
    shown = capsys.readouterr().out
    assert "+2.000" in shown
    assert "+3.000" in shown
    assert 0 == demo.show_curve(console, [fallback], candidates=2)
    assert "" == capsys.readouterr().out


def _raises(error: BaseException) -> Callable[..., int]:
    def run(*_: object, **__: object) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "output"),
    [
        (NotReady("a wheel is missing: run `make setup`"), EXIT_FAILED, "a wheel is missing: run `make setup`"),
        (JournalError("the race [1] is missing"), EXIT_FAILED, "the race [1] is missing"),
        (KeyboardInterrupt(), demo.EXIT_INTERRUPTED, "stopped"),
    ],
)
def test_an_error_is_printed_in_one_line(
    error: BaseException,
    code: int,
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "run", _raises(error))
    assert code == demo.main()
    assert output in capsys.readouterr().out


@pytest.mark.parametrize("method", ["ask", "stream"])
def test_a_failed_request_names_the_gateways_log(method: str) -> None:
    expected = r"the gateway did not answer: .*its log is in data/embedded/logs"
    with (
        demo._Caller("http://127.0.0.1:1", Console(), candidates=2, max_tokens=8) as caller,
        pytest.raises(NotReady, match=expected),
    ):
        getattr(caller, method)("Why?")


def test_the_text_of_a_winning_first_candidate_is_shown_once() -> None:
    out = io.StringIO()
    record: CompletionRecord = race_record(rewards=[2.0, None, 1.0])
    Console(file=out, width=120).print(presentation.race(record, latency_s=1.0))
    assert "the same" in out.getvalue()
    assert "no reward" in out.getvalue()
