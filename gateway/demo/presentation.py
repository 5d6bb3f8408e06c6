"""The demo's output: a race as tables, the records in Redis, and the gain of a larger N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gateway.demo.prompts import DemoPrompt
from gateway.journal.record import CandidateRecord, CompletionRecord

_BAR_CELLS = 16
_APPLICATION = """\
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="unused")
answer = client.chat.completions.create(
    model="ratchet",
    messages=[{"role": "user", "content": "Why is the sky blue?"}],
    extra_body={"best_of": 8},
)
print(answer.choices[0].message.content)
print(answer.best_of_n["rewards"])"""


def heading(number: str, prompt: DemoPrompt, *, streamed: bool) -> RenderableType:
    title = f"{number} · {prompt.kind}" + (" · streamed" if streamed else "")
    return Group(Text(), Rule(title, align="left", style="blue"), Text(prompt.prompt, style="bold"))


def race(record: CompletionRecord, *, latency_s: float) -> RenderableType:
    """Render one race: every candidate's reward, the winner beside the first candidate, and the cost."""
    first, winner = record.candidates[0], record.candidates[record.winners[0]]
    texts = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    texts.add_column(f"without best-of-N: candidate 0 ({_reward(first)})", ratio=1, style="dim")
    texts.add_column(f"best of {record.n_run}: candidate {winner.index} ({_reward(winner)})", ratio=1)
    texts.add_row(Text("the same" if winner.index == 0 else _text(first)), Text(_text(winner)))
    timings = record.timings
    cost = (
        f"{latency_s:.1f} s · {record.usage.generated_tokens} tokens generated, {record.usage.returned_tokens} "
        f"returned · scoring added {timings.score_ms:.0f} ms · the gateway added {timings.overhead_ms:.1f} ms · "
        f"selection: {record.selection.value}"
    )
    return Group(_candidates(record, winner), texts, Padding(Text(cost, style="dim"), (0, 2)))


def stored_races(stream: str, redis_url: str, records: Sequence[CompletionRecord]) -> RenderableType:
    """Render a summary of the races that were read back from the Redis stream."""
    n_candidates = sum(len(record.candidates) for record in records)
    n_scored = sum(candidate.reward is not None for record in records for candidate in record.candidates)
    facts = (
        f"{len(records)} races with {n_candidates} candidates, {n_scored} of them scored, were read back from the "
        f"stream {stream} of {redis_url}: every text, reward, seed and timing. The nightly training uses them."
    )
    return Group(Text(), Panel(Text(facts), title="In Redis", title_align="left"))


def curve(means: Mapping[int, float], *, n_prompts: int) -> RenderableType:
    table = Table("best of", "mean reward", "gain over one candidate", box=box.SIMPLE_HEAD)
    for n, mean in means.items():
        table.add_row(str(n), f"{mean:+.3f}", "" if n == 1 else f"{mean - means[1]:+.3f}")
    note = (
        f"Means over {n_prompts} prompts and all subsets of each race's candidates. The reward model that selects the "
        "winners also measures them here, so this only shows that selection works. loadtests/README.md has the "
        "measurement by a second model."
    )
    return Panel(Group(table, Text(note, style="dim")), title="The gain of a larger N", title_align="left")


def next_steps() -> RenderableType:
    """Render the command that keeps the stack running, and an application that uses it."""
    return Group(
        Text.assemble("\nKeep the stack running:  ", ("make serve", "bold"), "   Then, in your application:\n"),
        Padding(Syntax(_APPLICATION, "python", theme="ansi_dark", background_color="default"), (0, 2)),
        Text(),
    )


def _candidates(record: CompletionRecord, winner: CandidateRecord) -> Table:
    rewards = [candidate.reward for candidate in record.candidates if candidate.reward is not None]
    table = Table(box=None, padding=(0, 1), expand=True)
    table.add_column("#", justify="right")
    table.add_column("reward", justify="right")
    table.add_column("", width=_BAR_CELLS, no_wrap=True)
    table.add_column("tokens", justify="right")
    table.add_column("answer", ratio=1, no_wrap=True, overflow="ellipsis")
    for candidate in record.candidates:
        table.add_row(
            str(candidate.index),
            _reward(candidate),
            _bar(candidate.reward, rewards),
            str(candidate.tokens),
            Text(" ".join(_text(candidate).split())),
            style="bold green" if candidate is winner else None,
        )
    return table


def _bar(reward: float | None, rewards: Sequence[float]) -> str:
    """Return a bar: one cell for the race's lowest reward, all cells for its highest."""
    if reward is None:
        return ""
    low, high = min(rewards), max(rewards)
    share = (reward - low) / (high - low) if high > low else 1.0
    return "█" * (1 + round(share * (_BAR_CELLS - 1)))


def _reward(candidate: CandidateRecord) -> str:
    return "no reward" if candidate.reward is None else f"{candidate.reward:+.3f}"


def _text(candidate: CandidateRecord) -> str:
    return candidate.text or f"({candidate.error or 'no text'})"
