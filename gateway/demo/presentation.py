"""How the demo looks: one race as tables, the proof, and what best-of-N was worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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


def heading(place: str, prompt: DemoPrompt, *, streamed: bool) -> RenderableType:
    """The prompt, before its race begins."""
    title = f"{place} · {prompt.kind}" + (" · streamed" if streamed else "")
    return Group(Text(), Rule(title, align="left", style="blue"), Text(prompt.prompt, style="bold"))


def race(record: CompletionRecord, *, latency_s: float) -> RenderableType:
    """One race: every candidate's reward, the winner beside what one draw would have been, and what it cost."""
    winner = record.candidates[record.winners[0]]
    texts = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    texts.add_column(f"one draw would have been ({_reward(record.candidates[0])})", ratio=1, style="dim")
    texts.add_column(f"best of {record.n_run}: candidate {winner.index} ({_reward(winner)})", ratio=1)
    same = winner.index == 0
    texts.add_row(Text("the same" if same else _text(record.candidates[0])), Text(_text(winner)))
    timings = record.timings
    cost = (
        f"{latency_s:.1f} s · {record.usage.generated_tokens} tokens drawn, {record.usage.returned_tokens} returned · "
        f"scoring added {timings.score_ms:.0f} ms · the gateway's own work {timings.overhead_ms:.1f} ms · "
        f"selection: {record.selection.value}"
    )
    return Group(_candidates(record, winner), texts, Padding(Text(cost, style="dim"), (0, 2)))


def proof(stream: str, redis_url: str, records: Sequence[CompletionRecord]) -> RenderableType:
    """What lies in the Redis stream after the run."""
    n_candidates = sum(len(record.candidates) for record in records)
    n_scored = sum(candidate.reward is not None for record in records for candidate in record.candidates)
    facts = (
        f"{len(records)} races with {n_candidates} candidates, {n_scored} of them scored, were read back from the "
        f"stream {stream} of {redis_url}: every text, reward, seed and timing. This is what the nightly training uses."
    )
    return Group(Text(), Panel(Text(facts), title="In Redis", title_align="left"))


def curve(means: Mapping[int, float], *, n_prompts: int) -> RenderableType:
    """Mean reward of the best of n."""
    table = Table("best of", "mean reward", "above one draw", box=box.SIMPLE_HEAD)
    for n, mean in means.items():
        table.add_row(str(n), f"{mean:+.3f}", "" if n == 1 else f"{mean - means[1]:+.3f}")
    note = (
        f"Over {n_prompts} prompts and all subsets of each race's candidates. It is the same model that selects and "
        "judges here, so this shows that selection works; loadtests/README.md has the judgement of a second model."
    )
    return Panel(Group(table, Text(note, style="dim")), title="What N is worth", title_align="left")


def what_next() -> RenderableType:
    """How to keep it running, and how an application uses it."""
    return Group(
        Text.assemble("\nKeep it running:  ", ("make serve", "bold"), "   Then, in your application:\n"),
        Padding(Syntax(_APPLICATION, "python", theme="ansi_dark", background_color="default"), (0, 2)),
        Text(),
    )


def serving(url: str, log_dir: Path) -> RenderableType:
    """What ``make serve`` says once it is ready."""
    rows = Table.grid(padding=(0, 2))
    rows.add_row("API", f"{url}/v1   (OpenAI's chat API)")
    rows.add_row("Documentation", f"{url}/docs")
    rows.add_row("Metrics", f"{url}/metrics")
    rows.add_row("Logs", str(log_dir))
    return Panel(Group(rows, Text("Ctrl-C stops everything.", style="dim")), title="Serving", title_align="left")


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
    """A bar from the race's lowest reward (one cell) to its highest (all cells)."""
    if reward is None:
        return ""
    low, high = min(rewards), max(rewards)
    share = (reward - low) / (high - low) if high > low else 1.0
    return "█" * (1 + round(share * (_BAR_CELLS - 1)))


def _reward(candidate: CandidateRecord) -> str:
    return "no reward" if candidate.reward is None else f"{candidate.reward:+.3f}"


def _text(candidate: CandidateRecord) -> str:
    return candidate.text or f"({candidate.error or 'no text'})"
