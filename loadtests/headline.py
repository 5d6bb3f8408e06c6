"""The headline measurement on real weights: traffic, a night, and N: ``python -m loadtests.headline PROMPTS``.

Sends prompts through the real gateway on the embedded stack, best of 8, and then runs a night (``python -m distill
run``): the winners of one part of the prompts train, the other part (by the night's own hash) measures. A second call
sends the next prompts and runs the next night; a killed one continues. Held-out prompts are sent once each, best of 1:
the night draws its own samples for them. The guard, ``python -m distill watch``, runs at the same time; until it has
decided on the last night's canary, more prompts are sent.

PROMPTS is a file of JSON lines with a ``prompt``; the seed decides their order. ``DISTILL_…`` variables of the
environment come before the settings here. ``--out`` is a folder for the night's facts (no prompt, no answer) and its
figure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import openai
from openai.types.chat import ChatCompletionMessageParam
from rich.console import Console

from distill import exits
from distill.dataset.split import conversation_key, is_held_out
from distill.nightly.demo import environment
from distill.progress import counting
from distill.report.curves import reward_curves
from distill.report.facts import NightFacts
from distill.run_dir import RunDir, runs
from gateway.embedded.stack import EmbeddedStack
from gateway.policy import Policy
from gateway.processes.child import run_child

HELD_OUT_SHARE = 0.35
MAX_TOKENS = 128
N = 8
MORE = 60
CLIENTS = 6  # more draws in flight than slots, so that no slot idles while a race waits for its slowest draw

NIGHT = {
    "DISTILL_DATASET__HELD_OUT_SHARE": str(HELD_OUT_SHARE),
    "DISTILL_TRAINING__CHECKPOINTS": "1",
    "DISTILL_TRAINING__EPOCHS": "3",
    "DISTILL_TRAINING__BATCH_EXAMPLES": "16",
    "DISTILL_EVALUATION__DRAWS": str(N),
    "DISTILL_EVALUATION__TEMPERATURES": "0.7,1.0,1.3",
    "DISTILL_EVALUATION__MAX_TOKENS": str(MAX_TOKENS),
    "DISTILL_EVALUATION__CONCURRENCY": "32",
    "DISTILL_PROMOTION__CANARY_SHARE": "0.5",
    "DISTILL_PROMOTION__CANARY_REQUESTS": "60",
}
STACK = {"GATEWAY_POLICY__N": str(N), "GATEWAY_RACE__MAX_IN_FLIGHT": str(CLIENTS * N)}

console = Console()


def chosen(path: Path, *, seed: int) -> tuple[list[str], list[str]]:
    """Return the prompts that train and those that measure, each in an order drawn by the seed."""
    lines = path.read_text(encoding="utf-8").splitlines()
    prompts = list(dict.fromkeys(str(json.loads(line)["prompt"]) for line in lines if line.strip()))
    random.Random(seed).shuffle(prompts)
    measuring = [p for p in prompts if is_held_out(conversation_key([{"role": "user", "content": p}]), HELD_OUT_SHARE)]
    apart = set(measuring)
    return [p for p in prompts if p not in apart], measuring


def answered(file: Path) -> set[str]:
    """Return the prompts that were answered already."""
    return {json.loads(line) for line in file.read_text().splitlines()} if file.exists() else set()


def send(url: str, prompts: list[str], done_file: Path, *, best_of: int | None, words: str) -> None:
    """Send the prompts that the file does not name yet, and append each to it once it is answered."""
    done = answered(done_file)
    left = [prompt for prompt in prompts if prompt not in done]
    extra = {} if best_of is None else {"best_of": best_of}
    done_file.parent.mkdir(parents=True, exist_ok=True)
    http = openai.DefaultHttpxClient(trust_env=False)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=10, timeout=600.0, http_client=http)

    def one(prompt: str) -> str:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": prompt}]
        client.chat.completions.create(model="ratchet", messages=messages, max_tokens=MAX_TOKENS, extra_body=extra)
        return prompt

    with client, done_file.open("a") as sink, counting(console) as progress, ThreadPoolExecutor(CLIENTS) as clients:
        bar = progress.add_task(words, total=len(prompts), completed=len(prompts) - len(left))
        for prompt in clients.map(one, left):
            sink.write(json.dumps(prompt) + "\n")
            sink.flush()
            progress.advance(bar)


def send_training_prompts(stack: EmbeddedStack, training: list[str], night: Path, number: int, count: int) -> None:
    """Send tonight's traffic: prompts that no earlier night sent, and more while the guard waits for evidence."""
    earlier = set[str]().union(*(answered(night / f"asked-{before}.jsonl") for before in range(1, number)))
    fresh = [prompt for prompt in training if prompt not in earlier]
    file = night / f"asked-{number}.jsonl"
    count = max(count, len(answered(file)))
    send(stack.url, fresh[:count], file, best_of=None, words="sending training prompts")
    while on_trial(stack) and count < len(fresh):
        count += MORE
        send(stack.url, fresh[:count], file, best_of=None, words="sending more: the guard has not decided yet")


def on_trial(stack: EmbeddedStack) -> bool:
    """Return whether a canary answers a part of the traffic, by the gateway's own copy of the policy."""
    copy = stack.data_dir / "spool" / "policy.json"
    canary = Policy.model_validate_json(copy.read_bytes()).canary if copy.exists() else None
    return canary is not None and not canary.holdback


@contextmanager
def guarded(environment: Mapping[str, str]) -> Iterator[None]:
    """Run the guard, as an operator does."""
    with subprocess.Popen([sys.executable, "-m", "distill", "watch"], env=environment) as guard:
        try:
            yield
        finally:
            guard.terminate()


def publish(run: RunDir, out: Path, number: int) -> None:
    """Write the night's facts, without prompts and answers, as JSON, and its curves as SVG."""
    facts = NightFacts.read(run.path)
    out.mkdir(parents=True, exist_ok=True)
    paths = {"candidates": {"__all__": {"tests": {"__all__": {"path"}}}}}
    kept = facts.model_dump(mode="json", by_alias=True, exclude={"samples": True, "verdict": paths})
    (out / f"headline-{number}.json").write_text(json.dumps(kept, indent=1) + "\n")
    figure = reward_curves(facts)
    if figure is not None:
        wide = str(figure).split("</svg>")[0].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        style = resources.files("distill.report").joinpath("templates/style.css").read_text(encoding="utf-8")
        opening, rest = wide.split(">", 1)
        # The page's own style, light or dark; without the rules for narrow screens and print, which show other figures.
        wide_style = style.partition("@media screen and (max-width")[0]
        paper = '<rect width="100%" height="100%" style="fill: var(--page)"/>'
        (out / f"headline-{number}.svg").write_text(f"{opening}><style>{wide_style}</style>{paper}{rest}</svg>\n")


def main() -> int:
    """Send traffic, then run the night; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("data/headline"))
    parser.add_argument("--train", type=int, default=430, help="prompts asked, best of N, before each night")
    parser.add_argument("--held-out", type=int, default=264, help="prompts that measure, the same every night")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder that takes the night's facts and its figure")
    options = parser.parse_args()
    night = options.folder.absolute() / "night"
    training, measuring = chosen(options.prompts, seed=options.seed)
    known = runs(night / "runs")
    nights = sum(run.finished for run in known)
    with exits.exit_on_sigterm(), EmbeddedStack(options.folder, settings=STACK, on_step=console.print) as stack:
        os.environ.update({name: value for name, value in NIGHT.items() if name not in os.environ})
        variables = environment(stack.environment, night)
        with guarded(variables):
            once = night / "asked-once.jsonl"
            send(stack.url, measuring[: options.held_out], once, best_of=1, words="sending held-out prompts")
            if not known or known[-1].finished:
                send_training_prompts(stack, training, night, nights + 1, options.train)
            code = run_child([sys.executable, "-m", "distill", "run"], variables)
    if options.out and code == exits.FINISHED:
        every = runs(night / "runs")
        publish(every[-1], options.out, len(every))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
