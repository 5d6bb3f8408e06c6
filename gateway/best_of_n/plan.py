"""Plan a request's race before its first candidate is drawn: N, seeds, and whether it explores."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace

import orjson

from gateway.policy import Policy
from gateway.types import AnswerRequest, Arm, ArmName, Plan

_SEED_BITS = 31  # fits every backend: llama.cpp takes 32 bits and means "random" by the largest, TGI takes 64


def make_plan(request: AnswerRequest, policy: Policy, arm: Arm, *, arm_failed: ArmName | None = None) -> Plan:
    """Return the plan of a request's race.

    At temperature 0 no more candidates are drawn than are returned, because all would be the same. Whether the request
    explores follows from its seed and its messages, so that the same seed always gives the same race.

    Args:
        request: What the caller asks for.
        policy: The policy in force.
        arm: The arm that serves the request.
        arm_failed: The arm that should have served it and cannot.
    """
    sampling = request.sampling
    if sampling.temperature is None:
        sampling = replace(sampling, temperature=arm.default_temperature)
    seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
    best_of, n_returned = request.best_of, request.n_returned
    greedy = sampling.temperature == 0
    n = n_returned if greedy else best_of if best_of is not None else max(arm.n, n_returned)
    may_explore = best_of is None and not greedy and n <= policy.n_max
    explores = may_explore and hash_to_unit(str(seed).encode() + orjson.dumps(request.messages)) < policy.exploration
    return Plan(
        n_asked=policy.n_max if explores else n,
        n_ordinary=n,
        seed=seed,
        arm=arm,
        policy_version=policy.version,
        sampling=sampling,
        exploration=explores,
        exploration_probability=policy.exploration if may_explore else 0.0,
        n_returned=n_returned,
        n_from_caller=best_of is not None,
        arm_failed=arm_failed,
        # Two policies can only be compared by rewards, and at N = 1 there would be none.
        score_single=policy.canary is not None and best_of is None and not greedy,
    )


def draw_seed(seed: int, index: int) -> int:
    """Return the seed of candidate ``index``: distinct for each candidate, the same for the same request."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) & ((1 << _SEED_BITS) - 1)


def hash_to_unit(key: bytes) -> float:
    """Return a number in [0, 1) that depends on the key alone and is uniform over different keys."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / 2**64
