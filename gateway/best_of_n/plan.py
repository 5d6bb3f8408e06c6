"""A request's race, decided before its first draw: which policy, how many draws, with which seeds, exploring or not."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

import orjson

from gateway.policy import Arm, Policy
from gateway.types import ArmName, Message, Plan, Sampling

_SEED_BITS = 31  # fits every backend: llama.cpp takes 32 bits and means "random" by the largest, TGI takes 64


def choose_arm(policy: Policy, *, messages: Sequence[Message], caller: str) -> Arm:
    """Which of the policies served side by side answers this conversation.

    Decided by a hash of the caller and the first user message, with which every later turn of the conversation is sent
    again: no dialogue changes its policy midway, and the same request finds the same one. Each trial hashes anew, so
    that it is not always the same callers who try what is new.

    Args:
        policy: What holds now.
        messages: The conversation.
        caller: Who asks, so that what many ask ("Hello") is not all one policy's.
    """
    if policy.canary is None:
        return policy.stable
    first = next((message["content"] for message in messages if message["role"] == "user"), None) or ""
    names = (policy.canary.trial, caller, first)
    return policy.arm_at(_uniform(b"\0".join(name.encode("utf-8", "surrogatepass") for name in names)))


def make_plan(
    policy: Policy,
    arm: Arm,
    *,
    messages: Sequence[Message],
    sampling: Sampling,
    best_of: int | None,
    n_returned: int,
    arm_failed: ArmName | None = None,
) -> Plan:
    """Decide a request's race before its first draw.

    Args:
        policy: What holds now.
        arm: Which of its policies answers.
        messages: The conversation; with the caller's seed it decides whether the request explores, so that the same
            seed always gives the same race.
        sampling: The caller's sampling; at temperature 0 no more is drawn than is returned, for all would be the same.
        best_of: N as the caller asked for it; None leaves it to the policy.
        n_returned: How many answers the caller wants back.
        arm_failed: The arm that should have answered and cannot.
    """
    seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
    greedy = sampling.temperature == 0
    n = n_returned if greedy else best_of if best_of is not None else max(arm.n, n_returned)
    may_explore = best_of is None and not greedy and n <= policy.n_max
    explores = may_explore and _uniform(str(seed).encode() + orjson.dumps(messages)) < policy.exploration
    return Plan(
        n_asked=policy.n_max if explores else n,
        n_ordinary=n,
        seed=seed,
        adapter=arm.adapter,
        policy_version=policy.version,
        exploration=explores,
        exploration_probability=policy.exploration if may_explore else 0.0,
        n_returned=n_returned,
        n_from_caller=best_of is not None,
        arm=arm.name,
        arm_failed=arm_failed,
        urls=arm.urls,
        # Two policies can only be compared by rewards, and at N = 1 there would be none.
        score_single=policy.canary is not None and best_of is None and not greedy,
    )


def draw_seed(seed: int, index: int) -> int:
    """The seed of draw ``index``, derived from the caller's: distinct for each draw, the same every time."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) & ((1 << _SEED_BITS) - 1)


def _uniform(key: bytes) -> float:
    """A number in [0, 1) that is uniform over different keys and the same for the same one."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / 2**64
