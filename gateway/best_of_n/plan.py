"""A request's race, decided before its first draw: how many draws, with which seeds, exploring or not."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

import orjson

from gateway.policy import Policy
from gateway.types import Message, Plan, Sampling

_SEED_BITS = 31  # fits every backend: llama.cpp takes 32 bits and means "random" by the largest, TGI takes 64


def make_plan(
    policy: Policy, *, messages: Sequence[Message], sampling: Sampling, best_of: int | None, n_returned: int
) -> Plan:
    """Decide a request's race before its first draw.

    Args:
        policy: What holds now.
        messages: The conversation; with the caller's seed it decides whether the request explores, so that the same
            seed always gives the same race.
        sampling: The caller's sampling; temperature 0 needs one draw, for all would be the same.
        best_of: N as the caller asked for it; None leaves it to the policy.
        n_returned: How many answers the caller wants back.
    """
    seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
    greedy = sampling.temperature == 0
    n = 1 if greedy else best_of if best_of is not None else max(policy.n, n_returned)
    may_explore = best_of is None and not greedy and n <= policy.n_max
    explores = may_explore and _share(seed, messages) < policy.exploration
    return Plan(
        n_asked=policy.n_max if explores else n,
        n_ordinary=n,
        seed=seed,
        adapter=policy.adapter,
        policy_version=policy.version,
        exploration=explores,
        exploration_probability=policy.exploration if may_explore else 0.0,
        n_returned=1 if greedy else n_returned,
    )


def draw_seed(seed: int, index: int) -> int:
    """The seed of draw ``index``, derived from the caller's: distinct for each draw, the same every time."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) & ((1 << _SEED_BITS) - 1)


def _share(seed: int, messages: Sequence[Message]) -> float:
    """A number in [0, 1) that is uniform over requests and the same for the same request."""
    digest = hashlib.blake2b(str(seed).encode() + orjson.dumps(messages), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
