"""The steps that prepare data and train on it: collect, curate, train."""

from __future__ import annotations

import shlex
from dataclasses import asdict, fields, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from distill.dataset.archive import Archive
from distill.dataset.collect import LOST, Collected
from distill.dataset.curate import curate as curate_records
from distill.dataset.files import content_hash, read_examples, write_lines
from distill.errors import TrainingError
from distill.exits import TERMINATED
from distill.nightly.context import Night
from distill.nightly.results import CollectResult, CurateResult, TrainResult, read_result, write_result
from distill.run_dir import runs
from gateway.processes.child import run_child

if TYPE_CHECKING:
    from distill.training.callbacks import Step


def collect(night: Night) -> CollectResult:
    """Return what the collecting pass of this attempt archived.

    Raises:
        Exception: The error that ended the pass.
    """
    done = night.collecting.result()
    _print_collected(night, done)
    return CollectResult(done.collected, done.duplicates, len(done.unreadable), done.lost)


def add_collected(night: Night) -> None:
    """Add this attempt's collecting pass to the marker that an earlier attempt left."""
    earlier, now = read_result(night.run, CollectResult), night.collecting.collected
    if earlier is None or now is None:
        return
    _print_collected(night, now)
    total = replace(
        earlier,
        archived=earlier.archived + now.collected,
        duplicates=earlier.duplicates + now.duplicates,
        unreadable=earlier.unreadable + len(now.unreadable),
        lost=earlier.lost + now.lost,
    )
    write_result(night.run, total)


def _print_collected(night: Night, done: Collected) -> None:
    for path in done.unreadable:
        night.print(f"a record that this version cannot read is kept in {path}")
    night.print(f"{done.collected} new records archived, {done.duplicates} were archived before")
    if done.lost:
        night.print(LOST.format(done.lost))
    for warning in done.warnings:
        night.print(warning)


def curate(night: Night) -> CurateResult:
    """Sort the archive into winners that train, prompts that are held out, and records left out with their reason."""
    settings = night.settings.dataset
    archive = Archive(settings.archive_dir)
    with night.bar("curating", archive.count()) as advance:
        curated = curate_records(
            archive.completions(),
            archive.feedback(),
            settings,
            rolled_back=night.manifest.rolled_back,
            on_record=lambda: advance(1),
        )
    known = _trained_before(night)
    new = [example for example in curated.examples if example.record_id not in known]
    earlier = [example for example in curated.examples if example.record_id in known]
    write_lines(night.run.replay_file, earlier)
    write_lines(night.run.held_out_file, curated.held_out)
    write_lines(night.run.examples_file, new)
    night.print(
        f"{len(new)} new and {len(earlier)} earlier winners to train on, {len(curated.held_out)} held-out prompts, "
        f"{sum(curated.excluded.values())} of {curated.total} records left out"
    )
    news = _reward_model_news(curated.reward_models)
    for text in news:
        night.print(text)
    return CurateResult(
        total=curated.total,
        new=len(new),
        examples=len(curated.examples),
        held_out=len(curated.held_out),
        excluded={str(reason): count for reason, count in curated.excluded.items() if count},
        data_hash=content_hash(curated.examples, curated.held_out),
        reward_models=curated.reward_models,
        news=news,
    )


def _reward_model_news(winners: dict[str, int]) -> list[str]:
    """Return a line if earlier reward models chose some of the winners; ``winners`` counts them, newest model last."""
    *earlier, newest = winners or {"": 0}
    if not earlier:
        return []
    chosen = ", ".join(f"{winners[name]} by {name}" for name in earlier)
    return [
        f"winners were chosen by more than one reward model: {chosen}, {winners[newest]} by {newest}, the newest; "
        "DISTILL_DATASET__REWARD_MODELS=newest leaves the earlier ones out"
    ]


def reason_not_to_train(night: Night, curated: CurateResult) -> str | None:
    """Return why this night ends without training, or None if it trains."""
    least = night.settings.night.min_examples
    if curated.new < least:
        return f"{curated.new} new winners to train on, {least} are needed"
    if curated.held_out < 2:
        return f"{curated.held_out} held-out prompts to measure on, 2 are needed"
    return None


def train(night: Night) -> TrainResult:
    """Train an adapter on this night's winners and earlier ones; leave several checkpoints for the gate."""
    from distill.training.train import train as train_policy  # loads torch

    folder = night.run.path / "training"
    if night.settings.night.train_launcher:
        _launch(night, folder)
    with night.bar("training", None) as advance:
        done = 0

        def show(step: Step) -> None:
            nonlocal done
            advance(step.done - done, step.total)
            done = step.done

        trained = train_policy(
            read_examples(night.run.examples_file),
            read_examples(night.run.replay_file),
            night.settings.training,
            folder,
            on_progress=show,
        )
    night.print(
        f"{trained.examples} examples, {trained.steps} steps, loss {trained.losses[0]:.2f} → {trained.losses[-1]:.2f}"
    )
    facts = asdict(trained)
    return TrainResult(**{each.name: facts[each.name] for each in fields(TrainResult)})


def _launch(night: Night, folder: Path) -> None:
    """Train in separate processes, on several devices or hosts; their result is read back afterwards.

    Raises:
        TrainingError: They failed; the reason is on their stderr.
    """
    launcher = shlex.split(night.settings.night.train_launcher)
    files = [str(night.run.examples_file), "--replay", str(night.run.replay_file), "--out", str(folder)]
    code = run_child([*launcher, "-m", "distill", "train", *files])
    if code == TERMINATED:
        raise SystemExit(TERMINATED)
    if code:
        raise TrainingError(f"training ended with status {code}: its message is above")


def _trained_before(night: Night) -> set[str]:
    """Return the ids of the records on which an earlier night has trained."""
    every = runs(night.settings.night.runs_dir)
    before = takewhile(lambda run: run.id != night.run.id, every)
    earlier = [run for run in before if run.finished and run.result(TrainResult.step)]
    if not earlier:
        return set()
    # The last night's examples and replay together hold every winner that the archive had then.
    last = earlier[-1]
    return {example.record_id for file in (last.examples_file, last.replay_file) for example in read_examples(file)}
