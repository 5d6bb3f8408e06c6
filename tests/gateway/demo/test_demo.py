"""The demo on real weights, and its parts."""

import io
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from rich.console import Console

from gateway.demo import demo, presentation, prompts
from gateway.embedded.redis import RedisServer
from gateway.errors import NotReady
from gateway.journal.record import CompletionRecord
from tests.gateway.embedded.records import race_record, stream_of


def test_the_demo_asks_shows_and_proves(tmp_path: Path) -> None:
    """Two prompts, one of them streamed, on the whole stack; and every race still lies in Redis's data afterwards."""
    out = io.StringIO()
    console = Console(file=out, width=120)
    asked = prompts.load()[:2]
    assert demo.EXIT_OK == demo.run(console, asked, data_dir=tmp_path, candidates=2, max_tokens=12)
    shown = out.getvalue()
    for expected in (asked[0].prompt, "· streamed", "one draw would have been", "2 races with 4 candidates", "best of"):
        assert expected in shown
    with RedisServer(tmp_path / "redis") as server:
        records = stream_of(server.url)
    assert [prompt.prompt for prompt in asked] == [(record.messages or [])[0]["content"] for record in records]
    assert [2, 2] == [len(record.candidates) for record in records]


def test_races_without_all_their_rewards_fail_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """A race that fell back would make the comparison of N unfair: it is left out and counted."""
    console = Console()
    whole, fallback = race_record(rewards=[1.0, 3.0]), race_record(rewards=[2.0, None])
    assert 1 == demo.show_curve(console, [whole, fallback], candidates=2)
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
    ("error", "code", "told"),
    [
        (NotReady("a wheel is missing: run `make setup`"), demo.EXIT_FAILED, "a wheel is missing: run `make setup`"),
        (openai.OpenAIError("no [connection]"), demo.EXIT_FAILED, "no [connection]"),
        (KeyboardInterrupt(), demo.EXIT_INTERRUPTED, "stopped"),
    ],
)
def test_what_goes_wrong_is_told_in_words(
    error: BaseException,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "run", _raises(error))
    assert code == demo.main()
    assert told in capsys.readouterr().out


def test_a_gateway_that_ends_by_itself_fails_the_serving(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ended:
        url, log_dir = "http://127.0.0.1:1", Path("logs")

        def __init__(self, **_: object) -> None: ...

        def __enter__(self) -> "Ended":
            return self

        def __exit__(self, *_: object) -> None: ...

        def wait(self) -> str:
            return "the gateway ended with status 1"

    monkeypatch.setattr(demo, "EmbeddedStack", Ended)
    assert demo.EXIT_FAILED == demo.serve_embedded()
    assert "the gateway ended with status 1" in capsys.readouterr().out


def test_a_race_whose_winner_is_the_first_draw_is_shown_once() -> None:
    out = io.StringIO()
    record: CompletionRecord = race_record(rewards=[2.0, None, 1.0])
    Console(file=out, width=120).print(presentation.race(record, latency_s=1.0))
    assert "the same" in out.getvalue()
    assert "no reward" in out.getvalue()
