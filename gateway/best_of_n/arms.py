"""Choose the arm that serves a request, and the arm that serves it instead after a failure.

The stable arm serves instead of the canary or the holdback. The base model at its own N serves instead of a stable arm
whose adapter no server has any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gateway.best_of_n.plan import hash_to_unit
from gateway.errors import (
    AdapterMissing,
    BackendError,
    BackendOverloaded,
    BackendRejected,
    DeadlineExceeded,
    GatewayError,
    RequestContained,
)
from gateway.policy import Policy
from gateway.types import Arm, ArmName, Message


def choose_arm(policy: Policy, *, messages: Sequence[Message], caller: str) -> Arm:
    """Return the arm that serves this conversation, by a hash of the trial, the caller and the first user message.

    Every later turn sends the first user message again, so a conversation keeps its arm. The caller is hashed too,
    because many conversations begin alike ("Hello"); the trial, so that a new trial falls on other callers.

    Args:
        policy: The policy in force.
        messages: The conversation.
        caller: Identifies the caller.
    """
    if policy.canary is None:
        return policy.stable
    first = next((message["content"] for message in messages if message["role"] == "user"), None) or ""
    names = (policy.canary.trial, caller, first)
    return policy.arm_at(hash_to_unit(b"\0".join(name.encode("utf-8", "surrogatepass") for name in names)))


class Arms:
    """Chooses arms. An arm that failed is set aside for a while, so that few requests wait for it.

    Args:
        aside_s: How long a failed arm is set aside, in seconds.
        base_n: N of the base model where the policy does not name it.
        clock: Monotonic seconds.
    """

    def __init__(self, *, aside_s: float, base_n: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._aside_s = aside_s
        self._base_n = base_n
        self._clock = clock
        self._aside_until_s: dict[Arm, float] = {}

    def choose(self, policy: Policy, *, messages: Sequence[Message], caller: str) -> tuple[Arm, ArmName | None]:
        """Return the arm that serves, and the name of the one it replaces if that one is set aside."""
        chosen = choose_arm(policy, messages=messages, caller=caller)
        arm: Arm | None = chosen
        while arm is not None and self._is_aside(arm):
            arm = self._next(policy, arm)
        if arm is None or arm == chosen:
            return chosen, None
        return arm, chosen.name

    def replacement(self, policy: Policy, failed: Arm, error: GatewayError) -> Arm | None:
        """Return the arm to try after a race of ``failed`` ended in this error; None if no other arm would help.

        A rejected request (too long, a bad grammar) is tried again but sets no arm aside, because callers must not be
        able to do that. Two arms that share an overloaded pool are not both tried, and a request that broke servers
        goes to no other arm. The base model serves for the stable arm only where its adapter is missing.
        """
        if not isinstance(error, (BackendError, DeadlineExceeded)) or isinstance(error, RequestContained):
            return None
        if failed.name == "stable" and not isinstance(error, AdapterMissing):
            return None
        other = self._next(policy, failed)
        if other is None or (isinstance(error, BackendOverloaded) and failed.urls == other.urls):
            return None
        if not isinstance(error, BackendRejected):
            self._aside_until_s[failed] = self._clock() + self._aside_s
        return other

    def _next(self, policy: Policy, arm: Arm) -> Arm | None:
        if arm.name in ("canary", "holdback"):
            return policy.stable
        return policy.base_arm(self._base_n) if arm.name == "stable" and policy.adapter is not None else None

    def _is_aside(self, arm: Arm) -> bool:
        until_s = self._aside_until_s.get(arm)
        if until_s is None:
            return False
        if self._clock() < until_s:
            return True
        del self._aside_until_s[arm]
        return False
