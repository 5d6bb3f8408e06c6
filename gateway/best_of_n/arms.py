"""Which policy answers a request, and what happens when the second one cannot: the stable one does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gateway.best_of_n.plan import choose_arm
from gateway.errors import (
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
        clock: Seconds that only move forward.
    """

    def __init__(self, *, aside_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._aside_s = aside_s
        self._clock = clock
        self._failed: tuple[Arm, float] | None = None

    def choose(self, policy: Policy, *, messages: Sequence[Message], caller: str) -> tuple[Arm, ArmName | None]:
        """The arm that answers, and the one that should have and is set aside, if so."""
        arm = choose_arm(policy, messages=messages, caller=caller)
        if self._failed is not None and arm == self._failed[0] and self._clock() < self._failed[1]:
            return policy.stable, arm.name
        return arm, None

    def instead(self, policy: Policy, plan: Plan, error: GatewayError) -> Arm | None:
        """The stable arm, where a race of the second one ended in an error that the stable one may not meet.

        A refused request (too long, a bad grammar) is tried again but sets nothing aside: a caller must not be able to.
        An overloaded pool that both arms share is not asked twice, and a request that broke servers breaks no more.
        """
        second = policy.second
        if second is None or plan.arm != second.name or not isinstance(error, (BackendError, DeadlineExceeded)):
            return None
        if isinstance(error, RequestContained):
            return None
        if isinstance(error, BackendOverloaded) and second.urls == policy.urls:
            return None
        if not isinstance(error, BackendRejected):
            self._failed = (second, self._clock() + self._aside_s)
        return policy.stable
