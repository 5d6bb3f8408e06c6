"""The store of draws: whose they are decides the file, nothing is drawn twice, and what is there is read whole."""

from dataclasses import replace
from pathlib import Path

import pytest

from distill.errors import DataError, EvaluationError
from distill.evaluation import sample
from distill.evaluation.draws import Drawer, adopt, draw_design, drawn, missing, redrawn_alike, served
from distill.evaluation.sample import Design, Draw, Question, line_of, read_draws
from gateway.settings import BackendSettings
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.tgi import TgiStub

TALK = Question(
    "",
    "Name a tree.",
    [
        {"role": "user", "content": "Name a tree."},
        {"role": "assistant", "content": "Oak."},
        {"role": "user", "content": "Another."},
    ],
)
QUESTIONS = [Question("", "Name a tree."), TALK]
DESIGN = Design(QUESTIONS, (0.5, 1.0), draws=2, max_tokens=8)


def backend(stub: TgiStub) -> BackendSettings:
    return BackendSettings(urls=(stub.url,))


def test_everything_that_an_answer_depends_on_is_in_the_name(tmp_path: Path) -> None:
    first = Drawer("base", "tgi", None, 128)
    others = [
        Drawer("other", "tgi", None, 128),
        Drawer("base", "llamacpp", None, 128),
        Drawer("base", "tgi", "rft-1", 128),
        Drawer("base", "tgi", None, 64),
    ]
    assert 5 == len({drawer.file(tmp_path) for drawer in [first, *others]})
    assert first.file(tmp_path) == Drawer("base", "tgi", None, 128).file(tmp_path)


@pytest.mark.parametrize(
    ("drawer", "name"),
    [
        (Drawer("base", "tgi", None, 128), "base-c833d5181ffc.jsonl"),
        (Drawer("base", "tgi", None, 128, "b1"), "base-05b0aa76d09d.jsonl"),
        (Drawer("", "llamacpp", "a/b c", 64), "a_b_c-03e2a19f3051.jsonl"),
        (Drawer("", "llamacpp", "n" * 101, 64), f"{'n' * 100}-d6c4a0c6b339.jsonl"),
    ],
)
def test_a_policy_finds_its_file_of_earlier_releases(drawer: Drawer, name: str) -> None:
    """The names on disk: another name for the same policy would draw everything anew."""
    assert name == drawer.file(Path("draws")).relative_to("draws").as_posix()


async def test_more_questions_and_draws_extend_the_file(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    async with TgiStub() as stub:
        few = Design(QUESTIONS[:1], (0.5,), 1, 8)
        assert 1 == (await draw_design(backend(stub), few, path, concurrency=2)).draws
        first = read_draws(path)
        assert 7 == missing(DESIGN, path)
        added = await draw_design(backend(stub), DESIGN, path, concurrency=2)
    assert (7, 0) == (added.draws, missing(DESIGN, path))
    assert first == read_draws(path)[:1]
    assert added.tokens == sum(draw.completion_tokens for draw in read_draws(path)[1:])


async def test_a_conversation_is_drawn_whole_and_is_not_its_first_message(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    async with TgiStub() as stub:
        await draw_design(backend(stub), DESIGN, path, concurrency=1)
        lengths = {request.body.count(b'"role"') for request in stub.state.requests}
    assert {1, 3} == lengths
    by_temperature = drawn(DESIGN, path)
    assert [0.5, 1.0] == list(by_temperature)
    assert [QUESTIONS, QUESTIONS] == [[row[0].question for row in rows] for rows in by_temperature.values()]
    assert all([0, 1] == [draw.index for draw in row] for rows in by_temperature.values() for row in rows)


async def test_each_draw_is_told_once_and_may_take_longer_than_a_callers_request(tmp_path: Path) -> None:
    told: list[int] = []
    async with TgiStub(Knobs(latency_ms=300.0)) as stub:
        hasty = BackendSettings(urls=(stub.url,), request_timeout_s=0.1)
        await draw_design(hasty, DESIGN, tmp_path / "draws.jsonl", concurrency=8, on_draw=told.append)
    assert [1] * 8 == told


async def test_the_adapter_is_asked_by_its_name(tmp_path: Path) -> None:
    async with TgiStub() as stub:
        design = Design(QUESTIONS[:1], (1.0,), 1, 8, adapter="rft-1")
        await draw_design(backend(stub), design, tmp_path / "draws.jsonl", concurrency=1)
        assert b'"model":"rft-1"' in stub.state.requests[0].body.replace(b'": "', b'":"')


def test_missing_draws_are_counted_and_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    assert 8 == missing(DESIGN, path)
    path.touch()
    with pytest.raises(DataError, match="lacks 8 draws"):
        drawn(DESIGN, path)


async def test_a_question_that_the_backend_refuses_is_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    long = Question("", "word " * 100)
    async with TgiStub(Knobs(max_input_tokens=40, max_total_tokens=64)) as stub:
        added = await draw_design(backend(stub), Design([long, *QUESTIONS], (1.0,), 2, 8), path, concurrency=1)
    assert {long.key} == added.refused
    assert 4 == added.draws


async def test_a_backend_that_is_gone_ends_drawing_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_RETRY_WAIT_S", 0.0)
    async with TgiStub(Knobs(fault=Fault.STATUS, fault_status=500, fault_probability=1.0)) as stub:
        with pytest.raises(EvaluationError, match="drawing stopped: "):
            await draw_design(backend(stub), DESIGN, tmp_path / "draws.jsonl", concurrency=1)


async def test_draws_of_the_sample_command_are_taken_over_once(tmp_path: Path) -> None:
    source, store = tmp_path / "old.jsonl", tmp_path / "store" / "base.jsonl"
    async with TgiStub() as stub:
        await draw_design(backend(stub), DESIGN, source, concurrency=1)
    whole = source.read_bytes()
    source.write_bytes(whole + b'{"prompt": "still being wri')
    assert 8 == adopt(source, store, max_tokens=8)
    assert 0 == adopt(source, store, max_tokens=8)
    assert whole == store.read_bytes()
    with pytest.raises(DataError, match="not drawn with 4 tokens"):
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
def test_only_draws_under_the_same_limit_are_taken_over(
    tmp_path: Path, finish_reason: str, tokens: int, taken: bool
) -> None:
    source, store = tmp_path / "old.jsonl", tmp_path / "base.jsonl"
    source.write_bytes(line_of(Draw("Name a tree.", "", 1.0, 0, 0, "Oak.", finish_reason, tokens)))
    if taken:
        assert 1 == adopt(source, store, max_tokens=8)
    else:
        with pytest.raises(DataError, match="was not drawn with 8 tokens at most"):
            adopt(source, store, max_tokens=8)


def test_without_servers_of_its_own_the_fleet_draws() -> None:
    fleet = BackendSettings(urls=("http://127.0.0.1:9",))
    with served(fleet, servers=0, slots=4, context_tokens=64, adapters=[]) as chosen:
        assert fleet == chosen


@pytest.mark.parametrize(("others", "alike"), [(0, True), (4, True), (5, False), (8, False)])
async def test_a_file_is_of_the_same_model_if_half_of_a_few_answers_come_again(
    tmp_path: Path, others: int, alike: bool
) -> None:
    """Eight of its answers are drawn again, from their own seeds."""
    path = tmp_path / "draws.jsonl"
    async with TgiStub() as stub:
        await draw_design(backend(stub), DESIGN, path, concurrency=1)
        kept = read_draws(path)
        changed = [replace(each, text="another") if place < others else each for place, each in enumerate(kept)]
        path.write_bytes(b"".join(map(line_of, changed)))
        before = len(stub.state.requests)
        assert alike == await redrawn_alike(backend(stub), path, None, max_tokens=8)
        assert 8 == len(stub.state.requests) - before


async def test_a_file_without_answers_is_of_no_known_model(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    path.write_bytes(line_of(Draw("Name a tree.", "", 1.0, 0, 0, "", "stop", 0)))
    async with TgiStub() as stub:
        assert not await redrawn_alike(backend(stub), path, None, max_tokens=8)
