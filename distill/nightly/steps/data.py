"""The first half of a night: what the journal holds, what of it may train, and the model that it trains."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

from distill.dataset.archive import Archive
from distill.dataset.collect import LOST, Collected
from distill.dataset.curate import curate as curate_records
from distill.dataset.files import content_hash, read_examples, write_examples, write_held_out
from distill.errors import TrainingError
from distill.exits import TERMINATED
from distill.nightly.context import Night, Result
from distill.run_dir import RunDir, runs
from gateway.processes.child import run_child


def examples_file(run: RunDir) -> Path:
    """The winners that may train, of what no earlier night has trained on."""
    return run.path / "examples.jsonl"


def replay_file(run: RunDir) -> Path:
    """The winners of earlier nights, of which some may train again."""
    return run.path / "replay.jsonl"


def held_out_file(run: RunDir) -> Path:
    """The prompts that measure."""
    return run.path / "held_out.jsonl"


def collect(night: Night) -> Result:
    """Take over what this attempt's collecting pass did.

    Raises:
        Exception: The error that ended the pass.
    """
    done = night.first_pass.result()
    _say_collected(night, done)
    return _collect_facts(done)


def collect_again(night: Night) -> None:
    """Add this attempt's collecting pass to what an earlier attempt at the night collected."""
    before, now = night.run.result("collect"), night.first_pass.collected
    if before is not None and now is not None:
        _say_collected(night, now)
        added = {name: before.get(name, 0) + count for name, count in _collect_facts(now).items()}
        night.run.mark("collect", before | added)


def _say_collected(night: Night, done: Collected) -> None:
    for path in done.unreadable:
        night.say(f"a record that no version up to this one can read is kept in {path}")
    night.say(f"{done.collected} new records archived, {done.duplicates} had their row already")
    if done.lost:
        night.say(LOST.format(done.lost))
    for warning in done.warnings:
        night.say(warning)


def _collect_facts(done: Collected) -> Result:
    return {
        "archived": done.collected,
        "duplicates": done.duplicates,
        "unreadable": len(done.unreadable),
        "lost": done.lost,
    }


def curate(night: Night) -> Result:
    """Sort the archive into what trains, what measures, and what neither does, each with its reason."""
    settings = night.settings.dataset
    archive = Archive(settings.archive_dir)
    with night.bar("curating", archive.count()) as advance:
        curated = curate_records(
            archive.completions(),
            archive.feedback(),
            settings,
            rolled_back=night.run.manifest.get("rolled_back", []),
            on_record=lambda: advance(1),
        )
    known = _trained_before(night)
    new = [example for example in curated.examples if example.record_id not in known]
    earlier = [example for example in curated.examples if example.record_id in known]
    write_examples(replay_file(night.run), earlier)
    write_held_out(held_out_file(night.run), curated.held_out)
    write_examples(examples_file(night.run), new)
    night.say(
        f"{len(new)} new winners may train and {len(earlier)} earlier ones, {len(curated.held_out)} prompts measure, "
        f"{sum(curated.excluded.values())} of {curated.total} records are left out"
    )
    news = _reward_models_in_words(curated.reward_models)
    for words in news:
        night.say(words)
    return {
        "total": curated.total,
        "new": len(new),
        "reward_models": curated.reward_models,
        "news": news,
        "examples": len(curated.examples),
        "held_out": len(curated.held_out),
        "excluded": {str(reason): count for reason, count in curated.excluded.items() if count},
        "data_hash": content_hash(curated.examples, curated.held_out),
    }


def _reward_models_in_words(winners: dict[str, int]) -> list[str]:
    """Tell of winners that an earlier reward model chose."""
    *earlier, newest = winners or {"": 0}
    if not earlier:
        return []
    chosen = ", ".join(f"{winners[name]} by {name}" for name in earlier)
    return [
        f"winners were chosen by more than one reward model: {chosen}, {winners[newest]} by {newest}, the newest; "
        "DISTILL_DATASET__REWARD_MODELS=newest leaves the earlier ones out"
    ]


def why_not_trained(night: Night) -> str | None:
    """Why this night ends without training, or None if it need not."""
    found, least = night.results["curate"], night.settings.night.min_examples
    if found["new"] < least:
        return f"{found['new']} new winners to train on, {least} are needed"
    if found["held_out"] < 2:
        return f"{found['held_out']} held-out prompts to measure on, 2 are needed"
    return None


def train(night: Night) -> Result:
    """Teach the base its winners, tonight's and earlier ones; several checkpoints are left for the gate."""
    # Here, not on top: the commands that need no torch start without it.
    from distill.training.train import train as train_policy

    folder = night.run.path / "training"
    if night.settings.night.train_launcher:
        _launch(night, folder)
    with night.bar("training", None) as advance:
        done = 0

        def tell(step: Any) -> None:
            nonlocal done
            advance(step.done - done, step.total)
            done = step.done

        trained = train_policy(
            read_examples(examples_file(night.run)),
            read_examples(replay_file(night.run)),
            night.settings.training,
            folder,
            on_progress=tell,
        )
    night.say(
        f"{trained.examples} examples, {trained.steps} steps, loss {trained.losses[0]:.2f} → {trained.losses[-1]:.2f}"
    )
    facts = asdict(trained) | {"checkpoints": [str(path) for path in trained.checkpoints]}
    return {name: value for name, value in facts.items() if name != "versions"}


def _launch(night: Night, folder: Path) -> None:
    """Train in processes of their own, on several devices or hosts; what they leave is read back afterwards.

    Raises:
        TrainingError: They failed; why is on their stderr.
    """
    launcher = shlex.split(night.settings.night.train_launcher)
    files = [str(examples_file(night.run)), "--replay", str(replay_file(night.run)), "--out", str(folder)]
    code = run_child([*launcher, "-m", "distill", "train", *files])
    if code == TERMINATED:
        raise SystemExit(TERMINATED)
    if code:
        raise TrainingError(f"training ended with status {code}: its message is above")


def _trained_before(night: Night) -> set[str]:
    """Records of which an earlier night has made a model already."""
    every = runs(night.settings.night.runs_dir)
    before = takewhile(lambda run: run.id != night.run.id, every)
    earlier = [run for run in before if run.finished and run.result("train")]
    if not earlier:
        return set()
    # Each night's examples and replay together are all that the archive had to teach then.
    return {example.record_id for file in (examples_file, replay_file) for example in read_examples(file(earlier[-1]))}
