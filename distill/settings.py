"""The night's settings: read once from the environment, frozen, passed down.

A variable is ``DISTILL_``, the group, ``__`` and the field. Redis, the backend and the reward model are set by the
gateway's own ``GATEWAY_…`` variables, which the night reads too. An unknown or bad value ends the command and is named.
The docstring under each field is its meaning in the table of distill/README.md.

A ``ClassVar`` is a constant that was a setting in earlier releases. Its variable is accepted without effect for one
release; a run that was begun with another value cannot be resumed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from distill.errors import SettingsError
from gateway import environment
from gateway import errors as gateway_errors

PREFIX = "DISTILL_"

Numbers = Annotated[tuple[float, ...], NoDecode]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def constants(cls) -> dict[str, object]:
        return {name: getattr(cls, name) for name in cls.__class_vars__}


class DatasetSettings(_Group):
    """The archive, and the choice of training winners and held-out prompts."""

    archive_dir: Path = Path("data/night/archive")
    """Folder of the journal's archive in Parquet."""
    keep_days: int | None = Field(default=None, ge=1)
    """Each collect deletes records older than this from Redis and the archive; unset: none."""
    claim_idle_s: ClassVar[float] = 60.0
    """Records that another reader left unacknowledged for this long are taken over."""
    held_out_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of conversations that are held out and never train, chosen by a hash of their first user message."""
    min_margin_sd: float = Field(default=0.0, ge=0)
    """A winner trains only if its reward is this many standard deviations of its race above the race's mean."""
    max_per_prompt: ClassVar[int] = 1
    """Winners of one conversation that train, the newest ones."""
    reward_models: Literal["all", "newest"] = "all"
    """all: winners train whichever reward model chose them; newest: only winners that the newest model chose."""
    max_examples: int = Field(default=20_000, ge=1)
    """Most winners that a night trains on, those of earlier nights included; the newest are kept."""
    near_duplicate: ClassVar[float] = 0.8
    """Two prompts whose word shingles have at least this estimated Jaccard similarity count as one prompt."""


class TrainingSettings(_Group):
    """Training of the base model on winners."""

    model: str = ""
    """Base model: a folder or a hub id; empty: the embedded SmolLM2."""
    objective: Literal["sft", "dpo", "sft+ipo"] = "sft"
    """sft: train on the winners; dpo: on pairs of best and worst; sft+ipo: with both losses together."""
    rank: int = Field(default=32, ge=1)
    """Rank of the LoRA matrices, which adapt all linear layers."""
    alpha: int = Field(default=64, ge=1)
    """LoRA's alpha: the output of the matrices is scaled by alpha / rank."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate; for dpo use a tenth of the value for sft."""
    warm_up: ClassVar[float] = 0.05
    """Share of the steps in which the learning rate rises; then it falls to zero along a cosine."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the winners."""
    batch_examples: int = Field(default=16, ge=1)
    """Examples in one optimizer step, over all devices and micro-batches."""
    micro_batch_tokens: int = Field(default=0, ge=0)
    """Padded tokens in one forward pass; halved when memory runs out. 0: 1,024 on a CPU, 16,384 on CUDA."""
    max_length_tokens: int = Field(default=1024, ge=32)
    """Longest example; longer ones are left out and counted."""
    replay_share: ClassVar[float] = 0.5
    """Largest share of the training set that earlier nights' winners may take."""
    checkpoints: int = Field(default=3, ge=1)
    """Checkpoints that the gate chooses from, spread evenly over the training."""
    seed: ClassVar[int] = 0
    """Seed of the order of examples, the choice of replayed ones, and the matrices' initial values."""


class EvaluationSettings(_Group):
    """Sampling of held-out prompts, and the gate."""

    prompts: int = Field(default=300, ge=2)
    """Most held-out prompts that a night measures."""
    draws: int = Field(default=8, ge=1)
    """Samples of each prompt, from each policy at each temperature."""
    temperatures: Numbers = (0.4, 0.7, 1.0)
    """Temperatures of the serving policy's samples, separated by commas; a new policy must beat its best one."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest sample."""
    concurrency: int = Field(default=16, ge=1)
    """Samples drawn at the same time."""
    candidate_temperatures: Numbers = ()
    """Temperatures at which new checkpoints are sampled and may be promoted; unset: the policy's default, else 1."""
    own_servers: int = Field(default=0, ge=0)
    """llama.cpp servers of one thread each that the night starts for its samples; 0: the fleet draws them."""
    context_tokens: int = Field(default=1024, ge=64)
    """Context of the night's own servers for one sample: prompt and answer together."""
    draws_dir: Path = Path("data/night/draws")
    """Folder of samples and rewards, kept over nights, so that the serving policy is sampled once."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Largest chance that the gate lets N fall although the new policy is worse by the margin."""
    max_length_change: float = Field(default=0.15, gt=0)
    """Largest relative change of the samples' mean length that the gate accepts."""
    max_rise: ClassVar[float] = 0.03
    """Largest absolute rise of the shares of truncated samples and of repeated text."""
    min_diversity: ClassVar[float] = 0.6
    """Least distinctness of a prompt's samples, as a share of the old policy's."""
    judge_model: str = ""
    """Backbone of the judge, a second reward model; unset: GATEWAY_REWARD__MODEL with the judge's adapter."""
    judge_adapter: Path | None = None
    """Adapter of the judge, which must agree with the gate; if this and judge_model are unset, there is no judge."""

    @field_validator("temperatures", "candidate_temperatures", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return environment.split_list(value) if isinstance(value, str) else value


class PromotionSettings(_Group):
    """The way of an adapter to traffic, and the guard."""

    adapters_dir: Path = Path("data/night/adapters")
    """Folder of adapters, each an immutable folder."""
    gguf_dir: Path = Path("data/embedded/adapters")
    """Folder from which llama.cpp's replicas load adapters (GGUF)."""
    load_command: str = ""
    """Command, without a shell, that makes replicas serve {adapter} from {path}; with {url} it runs once a replica.
    TGI needs one."""
    load_timeout_s: ClassVar[float] = 900.0
    """Longest time of the load command, and of a replica's readiness after it."""
    canary_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of conversations that a new policy answers as canary."""
    canary_requests: int = Field(default=200, ge=1)
    """Pairs of a new and an old answer that the guard compares before it may promote the canary."""
    holdback_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of conversations that the old policy keeps after the promotion, for the guard to compare with."""
    watch_requests: int = Field(default=1000, ge=1)
    """Pairs of a new and an old answer after which the holdback ends."""
    guard_margin: float = Field(default=0.1, gt=0, lt=1)
    """Largest acceptable fall below one half of the chance that a new answer beats an old one."""
    guard_alpha: float = Field(default=0.05, gt=0, lt=1)
    """Largest chance that the guard rolls back, or promotes, wrongly: for each trial, before and after promotion."""
    guard_file: Path = Path("data/night/guard.json")
    """File of the guard's counts in the running trial."""


class NightSettings(_Group):
    """The run."""

    runs_dir: Path = Path("data/night/runs")
    """Folder of run directories, one a night."""
    keep_runs: int = Field(default=30, ge=1)
    """Run directories kept when a night ends, beside those that the next night or the serving policy needs."""
    min_examples: int = Field(default=32, ge=1)
    """With fewer new winners than this the night ends without training."""
    train_launcher: str = ""
    """Command before `-m distill train` (accelerate launch --config_file …); unset: the night's own process trains."""
    metrics_file: Path | None = None
    """Prometheus textfile with the metrics of the last night; unset: none is written."""
    at: str = Field(default="03:30", pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    """Time at which `python -m distill schedule` starts a night, HH:MM in local time."""


class Settings(BaseSettings):
    """Every setting of the night."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    dataset: DatasetSettings = DatasetSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    promotion: PromotionSettings = PromotionSettings()
    night: NightSettings = NightSettings()


_WITHOUT_EFFECT = frozenset(
    f"{PREFIX}{name}__{constant}".upper()
    for name, group in Settings.model_construct()
    for constant in group.constants()
)


def load() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: Names every unknown variable and every bad value.
    """
    try:
        return environment.read(Settings, PREFIX, "python -m distill settings", without_effect=_WITHOUT_EFFECT)
    except gateway_errors.SettingsError as error:
        raise SettingsError(str(error)) from error


def variables() -> dict[str, tuple[str, str]]:
    """Return the default and the meaning of every environment variable, in the order of the classes."""
    return environment.variables(Settings, PREFIX)
