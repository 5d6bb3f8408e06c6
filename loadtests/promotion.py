"""A promotion and a rollback on real parts under traffic: ``python -m loadtests.promotion``.

The embedded stack serves best of four, and clients ask it from the first minute to the last. Meanwhile:

1. the winners of that traffic train an adapter, which is published, loaded by a rolling restart, seen to answer, given
   half of the conversations with N = 3, and promoted by the guard (``python -m distill watch``, beside the gateway);
2. a harmful adapter (random weights, large) passes the canary, for it does answer as it did offline; it is given half
   of the conversations with N = 1, and the guard takes it back: N is 3 again;
3. ``python -m distill rollback`` takes back the first promotion by hand: the base, N = 4.

Nothing decides but the guard, on live rewards. Its margin is wide and its errors are allowed 10 %, so that tens of
pairs suffice; an operator's settings ask for hundreds. Every request must be answered, and every answer must have one
record that says which policy gave it. Takes from five minutes to a quarter of an hour on two cores.
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
from loadtests.stack import machine
from loadtests.traffic import Traffic
from loadtests.trial import Trial, harmful

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
    """The whole of it; what was found."""
    asked = [f"{each.prompt} {SHORT}" for each in prompts.load()]
    random.Random(0).shuffle(asked)
    began = time.monotonic()
    with EmbeddedStack(folder / "stack", settings=STACK) as stack:
        os.environ.update(stack.environment | NIGHT | _folders(folder, stack))
        with Traffic(stack.url, asked, clients=CLIENTS, max_tokens=MAX_TOKENS) as traffic:
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
    """Promote, roll back, and roll back by hand; the decisions in the guard's words."""
    checkpoint = options.checkpoint or trial.train(trial.winners(options.winners))
    better = trial.bring(checkpoint, "night-1", n=N_NEW)
    promoted = trial.await_verdict("night-1", promoted=True)
    check(promoted.adapter == better.name and promoted.n == N_NEW, "the promoted policy serves")
    trial.bring(harmful(folder / "harmful", options.strength), "night-2", n=N_HARMFUL, rivals=[better])
    back = trial.await_verdict("night-2", promoted=False)
    check(back.adapter == better.name and back.n == N_NEW, "N is what it was before the harmful adapter")
    trial.await_answers(2 * CLIENTS)
    command = [sys.executable, "-m", "distill", "rollback", "--reason", "by hand, to show it"]
    subprocess.run(command, check=True)
    by_hand = trial.history()[0]
    check(by_hand.adapter is None and by_hand.n == N, "the base serves with the N it had")
    trial.await_answers(2 * CLIENTS)
    return {"night-1": promoted.reason, "night-2": back.reason, "rollback": by_hand.reason}


@contextmanager
def guard() -> Iterator[None]:
    """``python -m distill watch`` beside the gateway, as an operator has it."""
    with subprocess.Popen([sys.executable, "-m", "distill", "watch"]) as process:
        try:
            yield
            check(process.poll() is None, "the guard is at work")
        finally:
            process.terminate()


def check(held: bool, what: str) -> None:
    """Go on only where it holds.

    Raises:
        SystemExit: It does not.
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
    """Run it, keep the result, and fail where a request did or a record is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--winners", type=int, default=16, help="winners that train the first adapter")
    parser.add_argument("--checkpoint", type=Path, help="one that an earlier run trained, instead of training now")
    parser.add_argument("--strength", type=float, default=1.0, help="size of the harmful adapter's random weights")
    parser.add_argument("--limit-s", type=float, default=1200.0, help="longest wait for any one thing")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    configure_logging("warning", "console")
    with exits.ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="ratchet-promotion-") as folder:
        result = run(Path(folder), options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    told = ("requests", "failed", "records", "by_arm", "decisions", "request_s", "step_s", "seconds")
    print(json.dumps({name: result[name] for name in told}, indent=1, ensure_ascii=False))
    check(result["failed"] == 0, "no request failed")
    check(result["answers_without_record"] == 0, "every answer has its record")


if __name__ == "__main__":
    main()
