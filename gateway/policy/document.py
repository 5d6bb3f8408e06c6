"""The policy document: one version of what answers requests, and the rule that assigns conversations to its arms.

A second policy may answer a share of all conversations: before its promotion it is the ``canary``; after it the two
change places, and the old one keeps a small share as the ``holdback``, for comparison. Each conversation has one
number in [0, 1) (see ``gateway.best_of_n.arms``): the canary answers those below its share, the holdback those from
1 − its share on. So a growing share, and the promotion itself, move conversations only from the old policy to the new
one. A program that does not know ``canary`` serves the first policy alone.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway.errors import PolicyError
from gateway.settings import PolicySettings, server_urls
from gateway.types import Arm, ArmName
from gateway.weight_check import WeightCheck


class _Variant(BaseModel):
    """The fields that every variant in a document has."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    adapter: str | None = None
    n: int = Field(ge=1)
    urls: tuple[str, ...] = ()
    default_temperature: float | None = Field(default=None, ge=0, le=2)

    _http_only = field_validator("urls")(server_urls)

    def arm(self, name: ArmName) -> Arm:
        return Arm(name, self.adapter, self.n, self.urls, self.default_temperature)


class Canary(_Variant):
    """The second policy. ``trial`` names the comparison: the same before and after the promotion."""

    share: float = Field(gt=0, lt=1)
    trial: str = ""
    holdback: bool = False


class Base(_Variant):
    """The last policy without an adapter. It answers when no server has the adapter of its successors any more."""


class Policy(_Variant):
    """One version of the policy. Fields of a newer program are ignored, so that a mixed fleet keeps serving.

    ``undoes`` names the trial that this version rolled back.
    """

    version: int = Field(ge=0, lt=2**63)
    n_max: int = Field(ge=1)
    exploration: float = Field(default=0.0, ge=0, le=1)
    canary: Canary | None = None
    base: Base | None = None
    checks: dict[str, WeightCheck] = Field(default_factory=dict)
    """Weight check of each adapter, for servers that do not list their adapters; older documents have none."""
    undoes: str | None = None
    reason: str = ""
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _exploration_covers_n(self) -> Self:
        if max(self.n, self.canary.n if self.canary is not None else 1) > self.n_max:
            raise ValueError("n must not exceed n_max: exploration would not see the N that serves")
        return self

    @property
    def stable(self) -> Arm:
        """The arm that answers every conversation that the second policy does not."""
        return self.arm("stable")

    @property
    def second(self) -> Arm | None:
        if self.canary is None:
            return None
        return self.canary.arm("holdback" if self.canary.holdback else "canary")

    def weight_checks(self) -> list[tuple[Arm, WeightCheck]]:
        """Return the arms whose adapter has a weight check, each with its check."""
        arms = [arm for arm in (self.stable, self.second) if arm is not None]
        return [(arm, check) for arm in arms if arm.adapter is not None and (check := self.checks.get(arm.adapter))]

    def base_arm(self, n: int) -> Arm:
        """Return the base model at its own N, for when no server has the stable policy's adapter.

        Args:
            n: N to use where the document, written by an older program, has none for the base.
        """
        base = self.base or Base(n=n, default_temperature=self.default_temperature)
        return Arm("base", None, min(base.n, self.n_max), base.urls, base.default_temperature)

    def arm_at(self, place: float) -> Arm:
        """Return the arm that answers the conversation with this number in [0, 1)."""
        second = self.second
        if self.canary is None or second is None:
            return self.stable
        share = self.canary.share
        return second if (place >= 1 - share if self.canary.holdback else place < share) else self.stable

    @property
    def pools(self) -> tuple[tuple[str, ...], ...]:
        """The URLs of each arm, the stable arm's first."""
        return (self.urls,) if self.canary is None else (self.urls, self.canary.urls)

    @classmethod
    def from_settings(cls, settings: PolicySettings) -> Self:
        """Return version 0: the policy that serves until one is published."""
        return cls(
            version=0,
            adapter=settings.adapter,
            n=settings.n,
            n_max=max(settings.n, settings.n_max),
            default_temperature=settings.default_temperature,
            exploration=settings.exploration,
            reason="settings",
        )

    def successor(self, *, reason: str, **changes: Any) -> Self:
        """Return the next version, with some fields changed.

        Raises:
            PolicyError: A changed field is unknown or out of range.
        """
        unknown = sorted(changes.keys() - type(self).model_fields.keys())
        if unknown:
            raise PolicyError("unknown policy fields: " + ", ".join(unknown))
        fields = (
            self.model_dump(exclude={"created", "undoes"})
            | ({"base": self.model_dump(include=set(Base.model_fields))} if self.adapter is None else {})
            | changes
            | {"version": self.version + 1, "reason": reason}
        )
        try:
            return type(self).model_validate(fields)
        except ValidationError as error:
            raise PolicyError(_problems(error)) from error

    @classmethod
    def parse(cls, document: bytes | str, *, n_limit: int | None = None) -> Self:
        """Parse a JSON document.

        Raises:
            PolicyError: It is malformed, or its ``n_max`` exceeds ``n_limit``.
        """
        try:
            policy = cls.model_validate_json(document)
        except ValidationError as error:
            raise PolicyError(_problems(error)) from error
        if n_limit is not None and policy.n_max > n_limit:
            raise PolicyError(f"n_max: {policy.n_max} is over this gateway's limit of {n_limit}")
        return policy


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'policy'}: {item['msg']}" for item in error.errors())
