"""The night's settings: read once from the environment, frozen, passed down.

Names are ``DISTILL_`` + group + ``__`` + field. What the night shares with the gateway (Redis, the backend, the
reward model) it reads from the gateway's own ``GATEWAY_…`` variables: one place says where they are. An unknown or bad
value is fatal and names itself. The docstring under each field is the settings table of distill/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from distill.errors import SettingsError
from gateway import environment
from gateway import errors as gateway_errors

PREFIX = "DISTILL_"

Numbers = Annotated[tuple[float, ...], NoDecode]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DatasetSettings(_Group):
    """What is archived, what may train, what is held out."""

    archive_dir: Path = Path("data/night/archive")
    """Folder of the Parquet archive of the journal."""
    keep_days: int | None = Field(default=None, ge=1)
    """Older records leave Redis and the archive with each collect; unset keeps them for ever."""
    claim_idle_s: float = Field(default=60.0, gt=0)
    """Records that another reader took and left unacknowledged this long are taken over."""
    held_out_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of conversations that measure and never train, by a hash of their first user message."""
    min_margin_sd: float = Field(default=0.0, ge=0)
    """Least (winner − mean) of a race's rewards, in the race's standard deviations, for the winner to train."""
    max_per_prompt: int = Field(default=1, ge=1)
    """Winners of one conversation that train; the newest stay."""
    reward_models: Literal["all", "newest"] = "all"
    """all: winners train whichever reward model chose them. newest: only those of the model that chose the newest."""
    max_examples: int = Field(default=20_000, ge=1)
    """Winners that a night may learn from, earlier nights' included; the newest stay."""
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Estimated Jaccard similarity of two prompts' word shingles from which they count as the same prompt."""


class TrainingSettings(_Group):
    """How the base model learns its winners."""

    model: str = ""
    """Base model: a folder or hub id; empty is the embedded SmolLM2."""
    objective: Literal["sft", "dpo", "sft+ipo"] = "sft"
    """sft: the winners. dpo: best against worst. sft+ipo: both losses together."""
    rank: int = Field(default=32, ge=1)
    """Rank of the LoRA matrices, on all linear layers."""
    alpha: int = Field(default=64, ge=1)
    """LoRA's alpha: what the matrices add is scaled by alpha / rank."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate; dpo wants a tenth of what sft does."""
    warm_up: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; then it falls by a cosine to zero."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the winners."""
    batch_examples: int = Field(default=16, ge=1)
    """Examples in one optimizer step, over all devices and micro-batches."""
    micro_batch_tokens: int = Field(default=0, ge=0)
    """Padded tokens in one pass through the model; halved when memory runs out. 0: 1,024 on a CPU, 16,384 on CUDA."""
    max_length_tokens: int = Field(default=1024, ge=32)
    """Longest example; longer ones are left out and counted."""
    replay_share: float = Field(default=0.5, ge=0, lt=1)
    """Largest share of the training set that earlier nights' winners may take."""
    checkpoints: int = Field(default=3, ge=1)
    """Checkpoints kept, evenly over the run, for the gate to choose from."""
    seed: int = 0
    """Seeds the order of examples, the choice of replayed ones, and the matrices' initial values."""


class EvaluationSettings(_Group):
    """What is measured on held-out prompts, and what the gate asks."""

    prompts: int = Field(default=300, ge=2)
    """Most held-out prompts drawn a night."""
    draws: int = Field(default=8, ge=1)
    """Answers to each prompt, from each policy at each temperature."""
    temperatures: Numbers = (0.4, 0.7, 1.0)
    """Temperatures of the serving policy's draws, separated by commas: its best one for each n is the control."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer drawn."""
    concurrency: int = Field(default=16, ge=1)
    """Draws in flight."""
    candidate_temperatures: Numbers = ()
    """Temperatures at which each new checkpoint is drawn and may be promoted; unset: the policy's default, else 1."""
    own_servers: int = Field(default=0, ge=0)
    """llama.cpp servers that the night starts itself to draw, one thread each; 0: the fleet's backend draws."""
    context_tokens: int = Field(default=1024, ge=64)
    """Prompt and answer of one draw together, on servers of the night's own."""
    draws_dir: Path = Path("data/night/draws")
    """Folder of draws and rewards, kept over nights: the serving policy is drawn once."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Chance of letting N shrink although the new policy is worse by the margin."""
    max_length_change: float = Field(default=0.15, gt=0)
    """Largest relative change of the answers' mean length."""
    max_rise: float = Field(default=0.03, ge=0)
    """Largest rise of the share of truncated answers, and of repeated text, in absolute terms."""
    min_diversity: float = Field(default=0.6, ge=0, le=1)
    """Least distinctness of the answers to one prompt (and token entropy, where known): a share of the old policy's."""
    judge_model: str = ""
    """Backbone of the held-out reward model; unset: GATEWAY_REWARD__MODEL, with the judge's own adapter."""
    judge_adapter: Path | None = None
    """Adapter of the held-out reward model, which must agree; unset, with no judge_model: none is asked."""

    @field_validator("temperatures", "candidate_temperatures", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class PromotionSettings(_Group):
    """How an adapter reaches traffic, and what takes it back."""

    adapters_dir: Path = Path("data/night/adapters")
    """Folder of adapters, one immutable folder each."""
    gguf_dir: Path = Path("data/embedded/adapters")
    """Folder from which llama.cpp's replicas take adapters (GGUF)."""
    load_command: str = ""
    """Command that makes replicas serve {adapter} from {path}, no shell; with {url}, once a replica. TGI needs one."""
    load_timeout_s: float = Field(default=900.0, gt=0)
    """Longest time the command, or a replica's readiness after it, may take."""
    canary_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of conversations that the new policy answers before it answers all."""
    canary_requests: int = Field(default=200, ge=1)
    """Answers of the new policy, compared with as many of the old one, before the guard may let it answer all."""
    holdback_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of conversations that the old policy keeps after the promotion, for the guard to compare with."""
    watch_requests: int = Field(default=1000, ge=1)
    """Answers of the old policy, compared with as many of the new one, after which the holdback ends."""
    guard_margin: float = Field(default=0.1, gt=0, lt=1)
    """How far the chance that a new answer beats an old one may fall below a half."""
    guard_alpha: float = Field(default=0.05, gt=0, lt=1)
    """Chance of rolling back, or of promoting, wrongly; for each trial, before and after its promotion."""
    guard_file: Path = Path("data/night/guard.json")
    """What the guard has counted of the trial under way."""


class NightSettings(_Group):
    """The run itself."""

    runs_dir: Path = Path("data/night/runs")
    """Folder of run directories, one a night."""
    keep_runs: int = Field(default=30, ge=1)
    """Run directories kept. Older ones are deleted as a night ends, but for those that the next night or the serving
    policy's adapters refer to."""
    min_examples: int = Field(default=32, ge=1)
    """Fewer curated winners than this and the night ends without training."""
    train_launcher: str = ""
    """Command before `-m distill train` (accelerate launch --config_file …); unset: the night's own process trains."""
    metrics_file: Path | None = None
    """Prometheus textfile that tells of the last night; unset writes none."""
    at: str = Field(default="03:30", pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    """When `python -m distill schedule` starts a night, HH:MM in local time."""


class Settings(BaseSettings):
    """Everything ``python -m distill`` reads beside the gateway's settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    dataset: DatasetSettings = DatasetSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    promotion: PromotionSettings = PromotionSettings()
    night: NightSettings = NightSettings()


def load() -> Settings:
    """Read the settings from the environment, or say in one message which are unknown or bad.

    Raises:
        SettingsError: Names every unknown variable and every bad value.
    """
    try:
        return environment.read(Settings, PREFIX, "python -m distill settings")
    except gateway_errors.SettingsError as error:
        raise SettingsError(str(error)) from error


def variables() -> dict[str, tuple[str, str]]:
    """Every environment variable with its default and its one-line description, in the order of the classes."""
    return environment.variables(Settings, PREFIX)
