"""Deletion of the copies that nights make of callers' texts.

In the folder of samples: samples, and rewards (``scores-*.jsonl``, by a hash of conversation and answer). In a run's
folder: examples, replay and held-out prompts; samples of its checkpoints; in ``steps/draw.json`` the prompts that the
backend refused; in the report a dozen prompts with answers. An unfinished training must not continue with other
examples than it began with, so its folder is deleted too.
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
from distill.forget.targets import Targets
from distill.report.facts import FACTS_FILE, NightFacts
from distill.report.page import HTML_FILE, write_report
from distill.run_dir import RunDir, delete_lines
from gateway.files import drop_drafts


@dataclass(frozen=True, slots=True)
class Copies:
    """The number of deleted copies, by kind."""

    draws: int
    examples: int
    reports: int


def delete_copies(draws_dir: Path, runs_dir: Path, targets: Targets) -> Copies:
    """Delete every copy of the targets. No night may run meanwhile.

    Raises:
        DataError: A file cannot be read.
        OSError: A file cannot be written.
    """
    folders = sorted(path for path in runs_dir.iterdir() if path.is_dir()) if runs_dir.is_dir() else []
    for folder in [draws_dir, *folders]:
        drop_drafts(folder)
    scores = sorted(draws_dir.glob(SCORES))
    draws = sorted({*draws_dir.glob("*.jsonl"), *runs_dir.glob("*/draws/*.jsonl")} - {*scores})
    _delete_scores(draws, scores, targets)
    return Copies(
        draws=sum(_delete_lines(path, lambda line: _draw_key(line) in targets.prompts) for path in draws),
        examples=sum(_delete_from_run(folder, targets) for folder in folders),
        reports=sum(_delete_from_report(folder, targets) for folder in folders),
    )


def _delete_scores(draws: Iterable[Path], scores: Iterable[Path], targets: Targets) -> None:
    """Delete the rewards of samples that will be deleted: before the samples, so that a repeated call finds them."""
    deleted: set[str] = set()
    for path in draws:
        for line in _parsed(path):
            if _draw_key(line) in targets.prompts:
                deleted.add(answer_key(_messages(line), line["text"]))
    for path in scores:
        _delete_lines(path, lambda line: line[0] in deleted)


def _delete_from_run(folder: Path, targets: Targets) -> int:
    """Delete from a run's curated files; an unfinished training on them starts again."""
    run = RunDir(folder)
    count = 0
    for path in (run.examples_file, run.replay_file, run.held_out_file):
        if path.exists():
            count += _delete_lines(path, lambda line: _is_example_of(line, targets))
    if count and run.result("train") is None:
        shutil.rmtree(folder / "training", ignore_errors=True)
    drawn = run.result("draw") or {}
    refused = drawn.get("refused", [])
    kept = [key for key in refused if _conversation_of(key) not in targets.prompts]
    if len(kept) < len(refused):
        run.mark("draw", {**drawn, "refused": kept})
    return count + len(refused) - len(kept)


def _delete_from_report(folder: Path, targets: Targets) -> int:
    """Delete prompts with their answers from a report, and render it again."""
    if not (folder / FACTS_FILE).exists():
        (folder / HTML_FILE).unlink(missing_ok=True)  # its content is not known
        return 0
    facts = NightFacts.read(folder)
    samples = [each for each in facts.samples if conversation_key(each.messages) not in targets.prompts]
    if len(samples) < len(facts.samples):
        write_report(facts.model_copy(update={"samples": samples}), folder)
    return len(facts.samples) - len(samples)


def _delete_lines(path: Path, chosen: Callable[[Any], bool]) -> int:
    try:
        return delete_lines(path, lambda line: chosen(orjson.loads(line)))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unreadable(path) from error


def _parsed(path: Path) -> Iterable[Any]:
    """Yield the parsed lines of a file, without an unfinished last line of a killed run."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                try:
                    yield orjson.loads(line)
                except ValueError as error:
                    raise _unreadable(path) from error


def _unreadable(path: Path) -> DataError:
    return DataError(f"{path} holds a line that this version cannot read: repair it or remove the file")


def _is_example_of(line: dict[str, Any], targets: Targets) -> bool:
    return line["key"] in targets.prompts or line.get("record_id") in targets.completions


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
