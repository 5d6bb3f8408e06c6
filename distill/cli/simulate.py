"""``python -m distill simulate``: simulate nights to see how many held-out prompts a night needs."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from distill.evaluation.gate import Rules
from distill.evaluation.simulate import Outcome, Scenario, Shape, prompts_for_power
from distill.evaluation.simulate import simulate as run_nights
from distill.exits import exit_on_error
from distill.progress import counting

console = Console()
stderr = Console(stderr=True)


def simulate(
    nights: Annotated[int, typer.Option(min=1, help="Simulated nights.")] = 1000,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts of a night.")] = 711,
    draws: Annotated[int, typer.Option(min=2, help="Samples of each prompt, from each policy.")] = 8,
    n_from: Annotated[int, typer.Option("--from", min=2, help="N now.")] = 8,
    n_to: Annotated[int, typer.Option("--to", min=1, help="N after the night.")] = 4,
    true_d: Annotated[float, typer.Option(help="True E[D] in δ: -1 null edge, 0 equal, 1 better.")] = -1.0,
    shape: Annotated[Shape, typer.Option(help="Distribution of rewards within a prompt.")] = "gaussian",
    sd_ratio: Annotated[float, typer.Option(help="The new policy's spread within a prompt over the old one's.")] = 1.0,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="The gate's error level.")] = 0.05,
    betting: Annotated[Literal["star"], typer.Option(hidden=True)] = "star",
    power: Annotated[
        float | None, typer.Option(help="Search for the fewest prompts at which this share of nights is promoted.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same nights.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help='Print {"promoted" (the share), "low", "high", "nights"}.')
    ] = False,
) -> None:
    """Run nights with a known truth through the gate and count promotions."""
    with exit_on_error():
        scenario = Scenario(prompts, draws, n_from, n_to, true_d, shape, sd_ratio)
        with counting(stderr, transient=True) as progress:
            bar = progress.add_task("nights", total=nights if power is None else None)
            rules = Rules(alpha=alpha)

            def advance() -> None:
                progress.advance(bar)

            if power is None:
                outcome = run_nights(scenario, nights, seed=seed, rules=rules, on_night=advance)
            else:
                prompts, outcome = prompts_for_power(scenario, power, nights, seed=seed, rules=rules, on_night=advance)
    if as_json:
        facts = {"promoted": outcome.promoted, "low": outcome.low, "high": outcome.high, "nights": outcome.nights}
        typer.echo(json.dumps(facts if power is None else {"prompts": prompts, **facts}))
    else:
        console.print(_table(scenario, prompts, outcome))


def _table(scenario: Scenario, prompts: int, outcome: Outcome) -> Table:
    title = f"{outcome.nights} nights: {scenario.n_from} → {scenario.n_to}, true E[D] = {scenario.true_d:+g} δ"
    table = Table(title=title, show_header=False)
    table.add_row("held-out prompts × samples", f"{prompts} × {scenario.samples}")
    table.add_row("promoted", f"{outcome.promoted:.1%} [{outcome.low:.1%}, {outcome.high:.1%}]")
    table.add_row("a fixed-sample t-test would promote", f"{outcome.fixed_sample:.1%}")
    if outcome.crossed_at is not None:
        table.add_row("enough evidence after, on average", f"{outcome.crossed_at:.0%} of the prompts")
    return table
