"""Choose the policy that answers a request, and the one that answers instead where that one cannot.

The stable policy answers instead of the second one; the base model at its own N answers instead of a stable policy
whose adapter no server has any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gateway.best_of_n.plan import choose_arm
from gateway.errors import (
    AdapterMissing,
    BackendError,
    BackendOverloaded,
    BackendRejected,
    DeadlineExceeded,
    GatewayError,
    RequestContained,
)
from gateway.policy import Arm, Policy
from gateway.types import ArmName, Message, Plan


class Arms:
    """Chooses arms, and sets one aside for a while after it failed, so that few requests wait for it in vain.

    Args:
        aside_s: For how long.
        base_n: N of the base model, where a policy does not say it.
        clock: Seconds that only move forward.
    """

    def __init__(self, *, aside_s: float, base_n: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._aside_s = aside_s
        self._base_n = base_n
        self._clock = clock
        self._failed: dict[Arm, float] = {}

    def choose(self, policy: Policy, *, messages: Sequence[Message], caller: str) -> tuple[Arm, ArmName | None]:
        """Return the arm that answers, and the one that should have and is set aside, if so."""
        chosen = choose_arm(policy, messages=messages, caller=caller)
        arm: Arm | None = chosen
        while arm is not None and self._set_aside(arm):
            arm = self._next(policy, arm.name)
        if arm is None or arm == chosen:
            return chosen, None
        return arm, chosen.name

    def instead(self, policy: Policy, plan: Plan, error: GatewayError) -> Arm | None:
        """Return the arm to try after a race that ended in an error which that arm may not meet; None where none is.

        A refused request (too long, a bad grammar) is tried again but sets nothing aside: a caller must not be able to.
        An overloaded pool that both arms share is not asked twice, and a request that broke servers breaks no more.
        The base answers for the stable policy only where its adapter is gone.
        """
        if not isinstance(error, (BackendError, DeadlineExceeded)) or isinstance(error, RequestContained):
            return None
        failed = next((arm for arm in (policy.second, policy.stable) if arm is not None and arm.name == plan.arm), None)
        if failed is None or (failed.name == "stable" and not isinstance(error, AdapterMissing)):
            return None
        other = self._next(policy, failed.name)
        if other is None or (isinstance(error, BackendOverloaded) and failed.urls == other.urls):
            return None
        if not isinstance(error, BackendRejected):
            self._failed[failed] = self._clock() + self._aside_s
        return other

    def _next(self, policy: Policy, name: ArmName) -> Arm | None:
        """Return the arm that answers where this one cannot."""
        if name in ("canary", "holdback"):
            return policy.stable
        return policy.base_arm(self._base_n) if name == "stable" and policy.adapter is not None else None

    def _set_aside(self, arm: Arm) -> bool:
        until_s = self._failed.get(arm)
        if until_s is None:
            return False
        if self._clock() < until_s:
            return True
        del self._failed[arm]
        return False
