"""The product's claim on real weights: traffic, a night, and N: ``python -m loadtests.headline PROMPTS``.

Asks prompts through the real gateway on the embedded stack, best of 8, and then has ``python -m distill run`` make a
night of it: the winners of one part train, the other part (by the night's own hash) measures. Run again, it asks the
next prompts and makes the next night; killed, it goes on. What the prompts of the other part say at N = 8 is of no use
to anybody, so they are asked once each: the night draws on them by itself. The guard, ``python -m distill watch``,
runs beside the traffic; while it has not decided on the last night's canary, more is asked.

PROMPTS is a file of JSON lines with a ``prompt``; their order is drawn by the seed. Settings of the night
(``DISTILL_…``) come from the environment before those here. ``--out`` takes the night's facts (no prompt, no answer)
and its figure as a file of its own.
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
CLIENTS = 6  # more draws in flight than slots: a race's slowest draw leaves no slot empty

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
    """Prompts that teach and prompts that measure, each in an order that the seed draws."""
    lines = path.read_text(encoding="utf-8").splitlines()
    prompts = list(dict.fromkeys(str(json.loads(line)["prompt"]) for line in lines if line.strip()))
    random.Random(seed).shuffle(prompts)
    measure = [p for p in prompts if is_held_out(conversation_key([{"role": "user", "content": p}]), HELD_OUT_SHARE)]
    apart = set(measure)
    return [p for p in prompts if p not in apart], measure


def asked(file: Path) -> set[str]:
    """Prompts that were answered already."""
    return {json.loads(line) for line in file.read_text().splitlines()} if file.exists() else set()


def ask(url: str, prompts: list[str], done_file: Path, *, best_of: int | None, words: str) -> None:
    """Ask those that the file does not name yet, and name each in it once it is answered."""
    done = asked(done_file)
    left = [prompt for prompt in prompts if prompt not in done]
    extra = {} if best_of is None else {"best_of": best_of}
    done_file.parent.mkdir(parents=True, exist_ok=True)
    http = openai.DefaultHttpxClient(trust_env=False)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=10, timeout=600.0, http_client=http)

    def one(prompt: str) -> str:
        message = {"role": "user", "content": prompt}
        client.chat.completions.create(model="ratchet", messages=[message], max_tokens=MAX_TOKENS, extra_body=extra)  # type: ignore[list-item]
        return prompt

    with client, done_file.open("a") as sink, counting(console) as progress, ThreadPoolExecutor(CLIENTS) as clients:
        bar = progress.add_task(words, total=len(prompts), completed=len(prompts) - len(left))
        for prompt in clients.map(one, left):
            sink.write(json.dumps(prompt) + "\n")
            sink.flush()
            progress.advance(bar)


def ask_what_teaches(stack: EmbeddedStack, teach: list[str], night: Path, number: int, count: int) -> None:
    """Tonight's traffic: prompts that no night before asked, and more of them while the guard waits for evidence."""
    earlier = set[str]().union(*(asked(night / f"asked-{before}.jsonl") for before in range(1, number)))
    fresh = [prompt for prompt in teach if prompt not in earlier]
    file = night / f"asked-{number}.jsonl"
    count = max(count, len(asked(file)))
    ask(stack.url, fresh[:count], file, best_of=None, words="asking what teaches")
    while on_trial(stack) and count < len(fresh):
        count += MORE
        ask(stack.url, fresh[:count], file, best_of=None, words="asking more: the guard has not decided yet")


def on_trial(stack: EmbeddedStack) -> bool:
    """Whether a canary answers a part of the traffic, as the gateway's own copy of the policy says."""
    copy = stack.data_dir / "spool" / "policy.json"
    canary = Policy.model_validate_json(copy.read_bytes()).canary if copy.exists() else None
    return canary is not None and not canary.holdback


@contextmanager
def guarded(environment: Mapping[str, str]) -> Iterator[None]:
    """The guard, as an operator has it running."""
    with subprocess.Popen([sys.executable, "-m", "distill", "watch"], env=environment) as guard:
        try:
            yield
        finally:
            guard.terminate()


def publish(run: RunDir, out: Path, number: int) -> None:
    """What the night found, without what anybody asked or answered: facts as JSON, the curves as SVG."""
    facts = NightFacts.read(run.path)
    out.mkdir(parents=True, exist_ok=True)
    kept = facts.model_dump(mode="json", exclude={"samples": True, "decision": {"tried": {"__all__": {"path"}}}})
    (out / f"headline-{number}.json").write_text(json.dumps(kept, indent=1) + "\n")
    figure = reward_curves(facts)
    if figure is not None:
        wide = str(figure).split("</svg>")[0].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        style = resources.files("distill.report").joinpath("templates/style.css").read_text(encoding="utf-8")
        opening, rest = wide.split(">", 1)
        # The page's own style, dark where its reader's is; not narrow and not printed, for those draw another figure.
        wide_style = style.partition("@media screen and (max-width")[0]
        paper = '<rect width="100%" height="100%" style="fill: var(--page)"/>'
        (out / f"headline-{number}.svg").write_text(f"{opening}><style>{wide_style}</style>{paper}{rest}</svg>\n")


def main() -> int:
    """Traffic, then the night; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("data/headline"))
    parser.add_argument("--train", type=int, default=430, help="prompts asked, best of N, before each night")
    parser.add_argument("--held-out", type=int, default=264, help="prompts that measure, the same every night")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder that takes the night's facts and its figure")
    options = parser.parse_args()
    night = options.folder.absolute() / "night"
    teach, measure = chosen(options.prompts, seed=options.seed)
    known = runs(night / "runs")
    nights = sum(run.finished for run in known)
    with exits.ended_by_sigterm(), EmbeddedStack(options.folder, settings=STACK, on_step=console.print) as stack:
        os.environ.update({name: value for name, value in NIGHT.items() if name not in os.environ})
        variables = environment(stack.environment, night)
        with guarded(variables):
            once = night / "asked-once.jsonl"
            ask(stack.url, measure[: options.held_out], once, best_of=1, words="asking what measures")
            if not known or known[-1].finished:
                ask_what_teaches(stack, teach, night, nights + 1, options.train)
            code = run_child([sys.executable, "-m", "distill", "run"], variables)
    if options.out and code == exits.FINISHED:
        every = runs(night / "runs")
        publish(every[-1], options.out, len(every))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
