"""A promotion and a rollback on real parts under traffic: ``python -m loadtests.promotion``.

The embedded stack serves best of 4, and clients send requests from the first minute to the last. Meanwhile:

1. the winners of that traffic train an adapter, which is published, loaded by a rolling restart, checked by its
   weights, given half of the conversations with N = 3, and promoted by the guard (``python -m distill watch``);
2. a harmful adapter (large random weights) passes the weight check, because it computes what it did offline; it gets
   half of the conversations with N = 1, and the guard rolls it back: N is 3 again;
3. ``python -m distill rollback`` rolls back the first promotion by hand: the base, N = 4.

The guard decides by live rewards alone. Its margin is wide and its error rate is 10 %, so that tens of pairs suffice;
an operator's settings need hundreds. Every request must be answered, and every answer must have one record that names
its policy. Takes five minutes to a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from distill import exits
from gateway.demo import prompts
from gateway.embedded.stack import EmbeddedStack
from gateway.telemetry import configure_logging
from loadtests.promotion_steps import Trial, harmful
from loadtests.stack import machine
from loadtests.tables import write_result
from loadtests.traffic import Traffic

RESULT = Path("loadtests/results/promotion.json")
SHORT = "Answer in one short sentence."
MAX_TOKENS = 40
CLIENTS = 3
N = 4
N_NEW = 3
N_HARMFUL = 1

STACK = {"GATEWAY_POLICY__N": str(N), "GATEWAY_POLICY__N_MAX": str(N), "GATEWAY_POLICY__EXPLORATION": "0"}
NIGHT = {
    "DISTILL_TRAINING__EPOCHS": "3",
    "DISTILL_TRAINING__BATCH_EXAMPLES": "8",
    "DISTILL_TRAINING__CHECKPOINTS": "1",
    "DISTILL_PROMOTION__CANARY_SHARE": "0.5",
    "DISTILL_PROMOTION__CANARY_REQUESTS": "12",
    "DISTILL_PROMOTION__HOLDBACK_SHARE": "0.5",
    "DISTILL_PROMOTION__WATCH_REQUESTS": "5",
    "DISTILL_PROMOTION__GUARD_MARGIN": "0.25",
    "DISTILL_PROMOTION__GUARD_ALPHA": "0.1",
}


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole scenario, and return the result."""
    texts = [f"{each.prompt} {SHORT}" for each in prompts.load()]
    random.Random(0).shuffle(texts)
    began = time.monotonic()
    with EmbeddedStack(folder / "stack", settings=STACK) as stack:
        os.environ.update(stack.environment | NIGHT | _folders(folder, stack))
        with Traffic(stack.url, texts, clients=CLIENTS, max_tokens=MAX_TOKENS) as traffic:
            trial = Trial(folder, traffic, limit_s=options.limit_s)
            with guard():
                decisions = scenario(trial, folder, options)
        trial.say("the last request is answered")
        answered = {each.id for each in traffic.answered}
        found = trial.wait("every record", lambda: each if len(each := trial.records()) >= len(answered) else None)
        history = [policy.model_dump(mode="json", exclude_none=True) for policy in reversed(trial.history())]
    arms = Counter((record.policy_version, record.arm, record.adapter or "base", record.n_run) for record in found)
    keys = ("policy", "arm", "adapter", "n", "answers")
    times = sorted(each.seconds for each in traffic.answered)
    return {
        "about": {
            **machine(),
            "clients": CLIENTS,
            "max_tokens": MAX_TOKENS,
            "trained_here": options.checkpoint is None,
            **STACK,
            **NIGHT,
        },
        "requests": len(traffic.answered) + len(traffic.failed),
        "streamed": sum(each.streamed for each in traffic.answered),
        "failed": len(traffic.failed),
        "failures": traffic.failed,
        "records": len(found),
        "answers_without_record": len(answered - {record.id for record in found}),
        "answered_instead_of_the_canary": sum(record.arm_failed is not None for record in found),
        "by_arm": [dict(zip(keys, (*names, count), strict=True)) for names, count in sorted(arms.items())],
        "decisions": decisions,
        "canary_saw": trial.seen,
        "history": history,
        "request_s": {"median": round(median(times), 2), "longest": round(times[-1], 2)},
        "step_s": trial.seconds,
        "seconds": round(time.monotonic() - began, 1),
    }


def scenario(trial: Trial, folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Promote, roll back, and roll back by hand; return the decisions in the guard's words."""
    checkpoint = options.checkpoint or trial.train(trial.winners(options.winners))
    better = trial.bring(checkpoint, "night-1", n=N_NEW)
    promoted = trial.await_verdict("night-1", promoted=True)
    check(promoted.adapter == better.name and promoted.n == N_NEW, "the promoted policy serves")
    trial.bring(harmful(folder / "harmful", options.strength), "night-2", n=N_HARMFUL, rivals=[better])
    back = trial.await_verdict("night-2", promoted=False)
    check(back.adapter == better.name and back.n == N_NEW, "N is what it was before the harmful adapter")
    trial.await_answers(2 * CLIENTS)
    command = [sys.executable, "-m", "distill", "rollback", "--reason", "by hand"]
    subprocess.run(command, check=True)
    by_hand = trial.history()[0]
    check(by_hand.adapter is None and by_hand.n == N, "the base serves with its earlier N")
    trial.await_answers(2 * CLIENTS)
    return {"night-1": promoted.reason, "night-2": back.reason, "rollback": by_hand.reason}


@contextmanager
def guard() -> Iterator[None]:
    """Run ``python -m distill watch`` beside the gateway, as an operator does."""
    with subprocess.Popen([sys.executable, "-m", "distill", "watch"]) as process:
        try:
            yield
            check(process.poll() is None, "the guard runs")
        finally:
            process.terminate()


def check(held: bool, what: str) -> None:
    """Continue only if a condition holds.

    Raises:
        SystemExit: It does not hold.
    """
    if not held:
        raise SystemExit(f"does not hold: {what}")


def _folders(folder: Path, stack: EmbeddedStack) -> dict[str, str]:
    return {
        "DISTILL_PROMOTION__ADAPTERS_DIR": str(folder / "adapters"),
        "DISTILL_PROMOTION__GGUF_DIR": str(stack.data_dir / "adapters"),
        "DISTILL_PROMOTION__GUARD_FILE": str(folder / "guard.json"),
    }


def main() -> None:
    """Run the scenario, write the result, and fail if a request failed or a record is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--winners", type=int, default=16, help="winners that train the first adapter")
    parser.add_argument("--checkpoint", type=Path, help="one that an earlier run trained, instead of training now")
    parser.add_argument("--strength", type=float, default=1.0, help="size of the harmful adapter's random weights")
    parser.add_argument("--limit-s", type=float, default=1200.0, help="longest wait for each step")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    configure_logging("warning", "console")
    with exits.exit_on_sigterm(), tempfile.TemporaryDirectory(prefix="ratchet-promotion-") as folder:
        result = run(Path(folder), options)
    write_result(options.out, result)
    shown = ("requests", "failed", "records", "by_arm", "decisions", "request_s", "step_s", "seconds")
    print(json.dumps({name: result[name] for name in shown}, indent=1, ensure_ascii=False))
    check(result["failed"] == 0, "no request failed")
    check(result["answers_without_record"] == 0, "every answer has its record")


if __name__ == "__main__":
    main()
