"""``python -m distill reward``: train a reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from distill.dataset.archive import Archive
from distill.errors import DataError
from distill.exits import exit_on_error, exit_on_sigterm
from distill.progress import LOSS, counting
from distill.reward_training.feedback_pairs import feedback_pairs
from distill.reward_training.preferences import Preference
from gateway.embedded.weights import minilm_folder

MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"

Pairs = Annotated[
    Path, typer.Argument(help="JSON Lines of {prompt: [message…], chosen: [message], rejected: [message], source?}.")
]
Out = Annotated[Path, typer.Option(help="Folder for the adapter and metrics.json.")]
Base = Annotated[Path | None, typer.Option(help="Folder of the backbone; unset: MiniLM from its wheel.")]
Answers = Annotated[
    Path | None,
    typer.Option(help="JSON Lines of {prompt: [message…], text}: coherent answers, of which spoiled versions train."),
]
Feedback = Annotated[
    Path | None,
    typer.Option(help="Archive of the journal: its callers' ratings are added as pairs of source 'feedback'."),
]
Folds = Annotated[int, typer.Option(min=2, help="Number of parts into which the prompts are split, by a hash.")]
Fold = Annotated[int, typer.Option(min=0, help="The held-out part: it is measured and does not train.")]
Seed = Annotated[int, typer.Option(help="The same seed, files and machine give the same weights.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the human pairs, each with freshly spoiled answers.")]
LearningRate = Annotated[float, typer.Option(min=1e-6, max=1.0, help="Peak learning rate.")]
Rank = Annotated[int, typer.Option(min=1, help="Rank of the LoRA matrices.")]
TopLayers = Annotated[int, typer.Option(min=1, help="Number of layers that LoRA adapts, counted from the last one.")]
MaxLength = Annotated[int, typer.Option(min=32, help="Longest input in training, in tokens.")]
Spoiled = Annotated[int, typer.Option(min=0, help="Spoiled versions of each good answer in each epoch.")]
Doubt = Annotated[float, typer.Option(min=0, max=0.5, help="Share of human labels expected to be wrong.")]
HumanWeight = Annotated[
    float,
    typer.Option(min=0, help="Weight of human pairs in LoRA's training; 0: they only fit the signals' weights."),
]
Signals = Annotated[
    bool, typer.Option(help="Add signals of the text (copied, repeated, on topic …), weighted to fit the pairs.")
]
LoraShare = Annotated[float, typer.Option(min=0, help="Weight of LoRA's logit relative to the signals.")]
Name = Annotated[str, typer.Option(help="Name of the model; unset: backbone+folder.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch decides. 1 is fastest on a busy machine.")]


def reward(
    pairs: Pairs,
    out: Out,
    base: Base = None,
    answers: Answers = None,
    feedback: Feedback = None,
    folds: Folds = 5,
    fold: Fold = 0,
    seed: Seed = 0,
    epochs: Epochs = 1,
    learning_rate: LearningRate = 1e-3,
    rank: Rank = 16,
    top_layers: TopLayers = 4,
    max_length: MaxLength = 160,
    spoiled: Spoiled = 4,
    human_weight: HumanWeight = 0.0,
    doubt: Doubt = 0.0,
    signals: Signals = True,
    lora_share: LoraShare = 0.15,
    name: Name = "",
    threads: Threads = 0,
) -> None:
    """Train a reward model (LoRA and head) from preference pairs, and measure it on unseen prompts."""
    if fold >= folds:
        raise typer.BadParameter(f"fold {fold} does not exist: {folds} folds are counted from 0", param_hint="--fold")
    # Imported here, because torch loads slowly and the other commands do not need it.
    from distill.reward_training.model import Recipe
    from distill.reward_training.train import run

    _limit_threads(threads)
    recipe = Recipe(
        epochs=epochs,
        learning_rate=learning_rate,
        rank=rank,
        top_layers=top_layers,
        max_length_tokens=max_length,
        spoiled_per_answer=spoiled,
        human_weight=human_weight,
        human_doubt=doubt,
        signals=signals,
        lora_share=lora_share,
        seed=seed,
    )
    with exit_on_sigterm(), exit_on_error(), counting(console := Console(stderr=True), fact=LOSS) as bar:
        task = bar.add_task("training", total=None, loss=float("nan"))
        metrics = run(
            pairs,
            out,
            base=base or minilm_folder(),
            base_name=str(base) if base else MINILM_NAME,
            name=name,
            answers_file=answers,
            n_folds=folds,
            held_out=fold,
            recipe=recipe,
            feedback=_feedback_pairs(feedback),
            progress=lambda done, total, loss: bar.update(task, completed=done, total=total, loss=loss),
        )
    console.print(_table(metrics))
    console.print(f"written to {out}", highlight=False)


def _limit_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def _feedback_pairs(archive_dir: Path | None) -> list[Preference]:
    """Return the archive's ratings as preference pairs; none without an archive.

    Raises:
        DataError: The folder holds no archive.
    """
    if archive_dir is None:
        return []
    archive = Archive(archive_dir)
    if not archive.parts():
        raise DataError(f"{archive_dir}: no archive of the journal")
    return feedback_pairs(archive.completions(), archive.feedback())


def _table(metrics: dict[str, Any]) -> Table:
    table = Table("ranked right", "share", "95 %", "pairs", title="Held-out prompts")
    human, spoiled = metrics["human"], metrics["spoiled"]
    rows = {"human, length-balanced": human["length_balanced"]}
    rows |= {f"human, better is {side}": human[f"better_is_{side}"] for side in ("longer", "shorter")}
    rows |= {f"human, {source}": shares["all"] for source, shares in human["by_source"].items()}
    rows |= {"spoiled, all kinds": spoiled["all"]}
    rows |= {f"spoiled, {kind}": share for kind, share in spoiled["by_kind"].items()}
    for name, share in rows.items():
        table.add_row(name, f"{share['value']:.1%}", f"{share['low']:.1%}–{share['high']:.1%}", str(share["n"]))
    return table
