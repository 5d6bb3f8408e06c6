"""The demo: real weights, a real reward model, a real Redis and the official client, on this machine.

It asks a dozen prompts, shows each race, reads the races back from the Redis stream, and shows the gain of a larger N.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import openai
from openai.types.chat import ChatCompletionMessageParam
from rich.console import Console

from gateway.demo import presentation, prompts
from gateway.demo.race_log import RaceLog
from gateway.embedded.serve import EXIT_FAILED, EXIT_OK, run_command, step_printer
from gateway.embedded.stack import DATA_DIR, DEFAULT_TEMPERATURE, EmbeddedStack
from gateway.errors import NotReady
from gateway.expected_max import expected_max
from gateway.journal.record import CompletionRecord

N_PROMPTS = 12
CANDIDATES = 8
MAX_TOKENS = 96
CURVE = (1, 2, 4, 8)
MODEL = "ratchet"

EXIT_INTERRUPTED = 130
_STREAMED_INDEX = 1  # the second prompt; the first shows what a race is


def main() -> int:
    """Run the demo on a stack of its own; return the exit code."""
    console = Console()
    return run_command(console, lambda: run(console, prompts.load()[:N_PROMPTS]), interrupted=EXIT_INTERRUPTED)


def run(
    console: Console,
    demo_prompts: Sequence[prompts.DemoPrompt],
    *,
    data_dir: Path = DATA_DIR,
    candidates: int = CANDIDATES,
    max_tokens: int = MAX_TOKENS,
) -> int:
    """Ask the prompts, show their races, the records in Redis and the gain of a larger N; return the exit code.

    Raises:
        GatewayError: The stack did not start, a request failed, or a race is missing from Redis.
    """
    print_step = step_printer(console)
    with EmbeddedStack(data_dir, on_step=print_step) as stack, RaceLog(stack.redis_url) as races:
        print_step(f"ready: {stack.url}")
        with _Caller(stack.url, console, candidates=candidates, max_tokens=max_tokens) as caller:
            for index, prompt in enumerate(demo_prompts):
                streamed = index == _STREAMED_INDEX
                number = f"{index + 1}/{len(demo_prompts)}"
                console.print(presentation.heading(number, prompt, streamed=streamed))
                started_s = time.monotonic()
                race_id = caller.stream(prompt.prompt) if streamed else caller.ask(prompt.prompt)
                latency_s = time.monotonic() - started_s
                console.print(presentation.race(races.wait_for(race_id), latency_s=latency_s))
        records = races.read()
        console.print(presentation.stored_races(races.key, stack.redis_url, records))
        print_step("stopping everything")
    n_scored = show_curve(console, records, candidates)
    console.print(presentation.next_steps())
    if n_scored < len(demo_prompts):
        text = f"only {n_scored} of {len(demo_prompts)} races have all their rewards: see {stack.log_dir}"
        console.print(f"[yellow]{text}[/]")
        return EXIT_FAILED
    return EXIT_OK


class _Caller:
    """Sends requests with OpenAI's client, as an application does."""

    def __init__(self, url: str, console: Console, *, candidates: int, max_tokens: int) -> None:
        self._client = openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="unused",
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False),  # no proxy for this machine itself
        )
        self._console = console
        self._candidates = candidates
        self._max_tokens = max_tokens

    def __enter__(self) -> _Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, text: str) -> str:
        """Request a whole answer; return its id."""
        with self._waiting():
            completion = self._client.chat.completions.create(
                model=MODEL,
                messages=_messages(text),
                max_tokens=self._max_tokens,
                temperature=DEFAULT_TEMPERATURE,
                extra_body={"best_of": self._candidates},
            )
        return completion.id

    def stream(self, text: str) -> str:
        """Request a streamed answer and print it as it arrives; return its id."""
        with (
            _translate_errors(),
            self._client.chat.completions.create(
                model=MODEL,
                messages=_messages(text),
                max_tokens=self._max_tokens,
                temperature=DEFAULT_TEMPERATURE,
                stream=True,
                extra_body={"best_of": self._candidates},
            ) as chunks,
        ):
            with self._waiting():
                first = next(iter(chunks))
            for chunk in itertools.chain([first], chunks):
                piece = chunk.choices[0].delta.content if chunk.choices else None
                self._console.print(piece or "", end="", style="green", markup=False, highlight=False, soft_wrap=True)
        self._console.print()
        return first.id

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        with self._console.status(f"generating and scoring {self._candidates} candidates"), _translate_errors():
            yield


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except openai.OpenAIError as error:
        raise NotReady(f"the gateway did not answer: {error}; its log is in {DATA_DIR}/logs") from error


def _messages(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def show_curve(console: Console, records: Sequence[CompletionRecord], candidates: int) -> int:
    """Show the mean reward of the best of n; return the number of races with all rewards, which are compared."""
    rewards = [[c.reward for c in record.candidates if c.reward is not None] for record in records]
    scored = [race for race in rewards if len(race) == candidates]
    if scored:
        means = {n: math.fsum(expected_max(race, n) for race in scored) / len(scored) for n in CURVE if n <= candidates}
        console.print(presentation.curve(means, n_prompts=len(scored)))
    return len(scored)
