"""The demo: real weights, a real reward model, a real Redis and the official client, on this machine.

It asks a dozen prompts, shows each race, reads the races back from the Redis stream, and tells what N was worth.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import openai
from openai.types.chat import ChatCompletionMessageParam
from rich.console import Console

from gateway import settings
from gateway.demo import presentation, prompts
from gateway.demo.races import RaceLog
from gateway.embedded.stack import DATA_DIR, DEFAULT_TEMPERATURE, EmbeddedStack
from gateway.errors import GatewayError
from gateway.expected_max import expected_max
from gateway.journal.record import CompletionRecord
from gateway.processes.signals import raise_on_signals
from gateway.telemetry import configure_logging

N_PROMPTS = 12
CANDIDATES = 8
MAX_TOKENS = 96
CURVE = (1, 2, 4, 8)
MODEL = "ratchet"

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_STREAMED_PLACE = 1  # the second prompt: by then it is clear what a race looks like


def main() -> int:
    """Run the demo on a stack of its own; returns the exit code."""
    console = Console()
    return _told(console, lambda: run(console, prompts.load()[:N_PROMPTS]), interrupted=EXIT_INTERRUPTED)


def serve_embedded() -> int:
    """Keep the stack running until Ctrl-C, with the GATEWAY_ variables that are set; returns the exit code."""
    console = Console()
    return _told(console, lambda: _serve(console), interrupted=EXIT_OK)


def run(
    console: Console,
    asked: Sequence[prompts.DemoPrompt],
    *,
    data_dir: Path = DATA_DIR,
    candidates: int = CANDIDATES,
    max_tokens: int = MAX_TOKENS,
) -> int:
    """Ask some prompts, show their races and what they prove; returns the exit code.

    Raises:
        GatewayError: The stack did not start, or a race is missing from Redis.
        openai.OpenAIError: A request failed.
    """
    say = _clock(console)
    with EmbeddedStack(data_dir, on_step=say) as stack, RaceLog(stack.redis_url) as races:
        say(f"ready: {stack.url}")
        with _Caller(stack.url, console, candidates=candidates, max_tokens=max_tokens) as caller:
            for place, prompt in enumerate(asked):
                streamed = place == _STREAMED_PLACE
                console.print(presentation.heading(f"{place + 1}/{len(asked)}", prompt, streamed=streamed))
                began = time.monotonic()
                race_id = caller.stream(prompt.prompt) if streamed else caller.ask(prompt.prompt)
                latency_s = time.monotonic() - began
                console.print(presentation.race(races.find(race_id), latency_s=latency_s))
        records = races.read()
        console.print(presentation.proof(races.key, stack.redis_url, records))
        say("stopping everything")
    n_whole = show_curve(console, records, candidates)
    console.print(presentation.what_next())
    if n_whole < len(asked):
        console.print(f"[yellow]only {n_whole} of {len(asked)} races have all their rewards: see {stack.log_dir}[/]")
        return EXIT_FAILED
    return EXIT_OK


class _Caller:
    """Asks the gateway as any application would: with the official client."""

    def __init__(self, url: str, console: Console, *, candidates: int, max_tokens: int) -> None:
        self._client = openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="unused",
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False),  # no proxy stands before this machine itself
        )
        self._console = console
        self._candidates = candidates
        self._max_tokens = max_tokens

    def __enter__(self) -> _Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, text: str) -> str:
        """Ask for a whole answer and return its id."""
        with self._racing():
            completion = self._client.chat.completions.create(
                model=MODEL,
                messages=_messages(text),
                max_tokens=self._max_tokens,
                temperature=DEFAULT_TEMPERATURE,
                extra_body={"best_of": self._candidates},
            )
        return completion.id

    def stream(self, text: str) -> str:
        """Ask for a streamed answer, show it as it arrives, and return its id."""
        with self._client.chat.completions.create(
            model=MODEL,
            messages=_messages(text),
            max_tokens=self._max_tokens,
            temperature=DEFAULT_TEMPERATURE,
            stream=True,
            extra_body={"best_of": self._candidates},
        ) as chunks:
            with self._racing():
                first = next(iter(chunks))
            for chunk in itertools.chain([first], chunks):
                piece = chunk.choices[0].delta.content if chunk.choices else None
                self._console.print(piece or "", end="", style="green", markup=False, highlight=False, soft_wrap=True)
        self._console.print()
        return first.id

    @contextmanager
    def _racing(self) -> Iterator[None]:
        with self._console.status(f"drawing and scoring {self._candidates} candidates"):
            yield


def _messages(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def show_curve(console: Console, records: Sequence[CompletionRecord], candidates: int) -> int:
    """Show what N is worth, and return how many races have all their rewards: only those are comparable."""
    rewards = [[c.reward for c in record.candidates if c.reward is not None] for record in records]
    whole = [race for race in rewards if len(race) == candidates]
    if whole:
        means = {n: math.fsum(expected_max(race, n) for race in whole) / len(whole) for n in CURVE if n <= candidates}
        console.print(presentation.curve(means, n_prompts=len(whole)))
    return len(whole)


def _serve(console: Console) -> int:
    chosen = settings.load()
    given = {name.upper(): value for name, value in os.environ.items() if name.upper().startswith(settings.PREFIX)}
    with EmbeddedStack(port=chosen.port, settings=given, on_step=_clock(console)) as stack:
        console.print(presentation.serving(stack.url, stack.log_dir))
        console.print(stack.wait(), markup=False, highlight=False)
    return EXIT_FAILED


def _clock(console: Console) -> Callable[[str], None]:
    """A way to say what happens, with the seconds since now."""
    began = time.monotonic()

    def say(step: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {step}", style="dim", markup=False, highlight=False)

    return say


def _told(console: Console, action: Callable[[], int], *, interrupted: int) -> int:
    """Run a command; what goes wrong is told in words, and being told to end is no error."""
    configure_logging("warning", "console")
    try:
        with raise_on_signals(KeyboardInterrupt(), signal.SIGTERM, signal.SIGHUP):
            return action()
    except KeyboardInterrupt:
        console.print("stopped")
        return interrupted
    except GatewayError as error:
        message = error.message
    except openai.OpenAIError as error:
        message = f"the gateway did not answer: {error}; its log is in {DATA_DIR}/logs"
    console.print(message, style="red", markup=False, highlight=False)
    return EXIT_FAILED
