"""What each step leaves in its marker. Checked when a night is taken up again: a marker may have been edited or cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.errors import DataError


class _Marker(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=False)


class _Collect(_Marker):
    archived: int
    duplicates: int
    unreadable: int


class _Curate(_Marker):
    total: int
    new: int
    examples: int
    held_out: int
    excluded: dict[str, int]
    data_hash: str
    reward_models: dict[str, int] = {}
    news: list[str] = []


class _Train(_Marker):
    checkpoints: list[str]
    steps: int
    examples: int
    replayed: int
    tokens: int
    seconds: float
    peak_memory_bytes: int | None
    losses: list[float]
    gradient_norms: list[float]
    base: str


class _Draw(_Marker):
    tokens: int
    reused: int
    refused: list[str]
    prompts: int
    candidates: dict[str, str]
    behaviour: str = ""
    news: list[str] = []


class _Scored(_Marker):
    model: str
    path: str
    tokens: int


class _Score(_Marker):
    select: _Scored
    judge: _Scored | None
    tokens: int
    news: list[str] = []


class _Gate(_Marker):
    promote: bool
    n_now: int
    n_new: int
    checkpoint: str | None
    temperature: float | None
    why: str


class _Publish(_Marker):
    adapter: str
    path: str


class _Load(_Marker):
    urls: int


class _Canary(_Marker):
    found: str


class _Promote(_Marker):
    policy_version: int
    share: float | None


class _Report(_Marker):
    outcome: str
    headline: str
    page: str


_MARKERS: dict[str, type[_Marker]] = {
    "collect": _Collect,
    "curate": _Curate,
    "train": _Train,
    "draw": _Draw,
    "score": _Score,
    "gate": _Gate,
    "publish": _Publish,
    "load": _Load,
    "canary": _Canary,
    "promote": _Promote,
    "report": _Report,
}


def check_result(step: str, result: dict[str, Any], path: Path) -> None:
    """Refuse a marker that lacks what later steps read of it.

    Raises:
        DataError: Says what is wrong with which marker, and what to do.
    """
    try:
        _MARKERS[step].model_validate(result)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(
            f"{path} is not what the step left ({where}: {problem['msg']}): remove it, and the step is run again"
        ) from None
