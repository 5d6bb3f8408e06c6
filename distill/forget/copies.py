"""The copies that nights make of what callers sent, and how each is deleted.

Of the folder of draws: draws, and rewards (``scores-*.jsonl``, by a hash of conversation and answer). Of a run's
folder: examples, replay and held-out prompts; draws of its checkpoints; in ``steps/draw.json`` the prompts that the
backend refused; in the report a dozen prompts with answers. A training that has not ended must not go on with other
examples than it began with, so its folder goes too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from distill.dataset.split import conversation_key
from distill.errors import DataError
from distill.evaluation.samples import answer_key
from distill.evaluation.scoring import SCORES
from distill.forget.wanted import Wanted
from distill.report.facts import FACTS_FILE, NightFacts
from distill.report.page import HTML_FILE, write_report
from distill.run_dir import RunDir, keep_lines
from gateway.files import drop_drafts

_CURATED = ("examples.jsonl", "replay.jsonl", "held_out.jsonl")


@dataclass(frozen=True, slots=True)
class Copies:
    """How much went, by what it was."""

    draws: int
    examples: int
    reports: int


def forget_copies(draws_dir: Path, runs_dir: Path, wanted: Wanted) -> Copies:
    """Delete every copy of what is wanted. No night may run meanwhile.

    Raises:
        DataError: A file cannot be read.
        OSError: A file cannot be written.
    """
    folders = sorted(path for path in runs_dir.iterdir() if path.is_dir()) if runs_dir.is_dir() else []
    for folder in [draws_dir, *folders]:
        drop_drafts(folder)
    scores = sorted(draws_dir.glob(SCORES))
    draws = sorted({*draws_dir.glob("*.jsonl"), *runs_dir.glob("*/draws/*.jsonl")} - {*scores})
    _forget_scores(draws, scores, wanted)
    return Copies(
        draws=sum(_forget_lines(path, lambda line: _draw_key(line) in wanted.prompts) for path in draws),
        examples=sum(_forget_run(folder, wanted) for folder in folders),
        reports=sum(_forget_report(folder, wanted) for folder in folders),
    )


def _forget_scores(draws: Iterable[Path], scores: Iterable[Path], wanted: Wanted) -> None:
    """Delete the rewards of draws that go; before these, so that a second call after a crash finds them again."""
    going: set[str] = set()
    for path in draws:
        for line in _parsed(path):
            if _draw_key(line) in wanted.prompts:
                going.add(answer_key(_messages(line), line["text"]))
    for path in scores:
        _forget_lines(path, lambda line: line[0] in going)


def _forget_run(folder: Path, wanted: Wanted) -> int:
    """Delete from a run's curated files; a training on them that has not ended begins again."""
    gone = 0
    for name in _CURATED:
        if (folder / name).exists():
            gone += _forget_lines(folder / name, lambda line: _is_example_of(line, wanted))
    run = RunDir(folder)
    if gone and run.result("train") is None:
        shutil.rmtree(folder / "training", ignore_errors=True)
    drawn = run.result("draw") or {}
    refused = drawn.get("refused", [])
    stays = [key for key in refused if _conversation_of(key) not in wanted.prompts]
    if len(stays) < len(refused):
        run.mark("draw", {**drawn, "refused": stays})
    return gone + len(refused) - len(stays)


def _forget_report(folder: Path, wanted: Wanted) -> int:
    """Delete the prompts that a report shows with their answers, and render it anew."""
    if not (folder / FACTS_FILE).exists():
        (folder / HTML_FILE).unlink(missing_ok=True)  # nothing tells what it shows
        return 0
    facts = NightFacts.read(folder)
    samples = [each for each in facts.samples if conversation_key(each.messages) not in wanted.prompts]
    if len(samples) < len(facts.samples):
        write_report(facts.model_copy(update={"samples": samples}), folder)
    return len(facts.samples) - len(samples)


def _forget_lines(path: Path, goes: Callable[[Any], bool]) -> int:
    try:
        return keep_lines(path, lambda line: not goes(orjson.loads(line)))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unreadable(path) from error


def _parsed(path: Path) -> Iterable[Any]:
    """The lines of a file, without a last one that a killed run left unfinished."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                try:
                    yield orjson.loads(line)
                except ValueError as error:
                    raise _unreadable(path) from error


def _unreadable(path: Path) -> DataError:
    return DataError(f"{path} holds a line that this version cannot read: mend it or remove the file")


def _is_example_of(line: dict[str, Any], wanted: Wanted) -> bool:
    return line["key"] in wanted.prompts or line.get("record_id") in wanted.completions


def _messages(draw: dict[str, Any]) -> list[Any]:
    turns = draw.get("turns")
    return turns if turns is not None else [{"role": "user", "content": draw["prompt"]}]


def _draw_key(draw: dict[str, Any]) -> str:
    return conversation_key(_messages(draw))


def _conversation_of(key: str) -> str:
    """The conversation of a prompt's key (``evaluation.prompts.Prompt.key``)."""
    try:
        turns = json.loads(key)
        return conversation_key(turns)
    except (ValueError, TypeError, AttributeError):
        return conversation_key([{"role": "user", "content": key}])
