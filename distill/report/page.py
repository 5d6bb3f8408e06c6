"""The report of a night: one HTML file that needs nothing else, and the same facts as JSON."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from distill.report import curves, evidence, figures, story
from distill.report.facts import NightFacts
from distill.report.words import FILTERS, SHOWN_CHARACTERS, visible
from gateway.files import write_atomically

HTML_FILE = "report.html"


def render(facts: NightFacts) -> str:
    """The page: no script, nothing fetched, every text in it escaped."""
    html = _template().render(
        night=facts,
        story=story,
        shown_characters=SHOWN_CHARACTERS,
        **_records(facts),
        **_figures(facts),
        **_gate(facts),
    )
    return visible(html)


def write_report(facts: NightFacts, folder: Path) -> Path:
    """Write ``report.json``, then ``report.html``, each in one step; returns the page."""
    facts.write(folder)
    path = folder / HTML_FILE
    write_atomically(path, render(facts).encode())
    return path


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("distill.report"),
        autoescape=True,  # answers are whatever a model wrote and questions whatever a stranger sent
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("report.html.j2")


def _records(facts: NightFacts) -> dict[str, Any]:
    """Every record's fate, and whether the fates add up."""
    collected = facts.collected
    if collected is None:
        return {"fates": [], "accounted": 0}
    fates = [("trains", collected.examples, "new"), ("held out, to measure", collected.held_out, "best")]
    left_out = sorted(collected.excluded.items(), key=lambda item: -item[1])
    fates += [(f"left out: {name.replace('_', ' ')}", number, "old") for name, number in left_out]
    return {"fates": fates, "accounted": sum(number for _, number, _ in fates)}


def _figures(facts: NightFacts) -> dict[str, Any]:
    measured = facts.measured
    old_reward = story.old_bars(facts, measured.rewards) if measured else None
    new_reward = story.new_bars(facts, measured.rewards) if measured else None
    old_length = story.old_bars(facts, measured.lengths) if measured else None
    new_length = story.new_bars(facts, measured.lengths) if measured else None
    spread = story.spread_title(measured) if measured else ""
    length = story.length_title(measured) if measured else ""
    return {
        "curves_figure": curves.reward_curves(facts),
        "loss_figure": figures.loss_curve(facts),
        "gradient_figure": figures.gradient_norms(facts),
        "reward_figure": figures.histograms(old_reward, new_reward, "reward of one draw", spread),
        "length_figure": figures.histograms(old_length, new_length, "answer's tokens", length),
        "history_figure": figures.n_over_nights(facts.history, facts),
        "compared": [bars for bars in (old_reward, new_reward) if bars is not None],
    }


def _gate(facts: NightFacts) -> dict[str, Any]:
    """The gate's figure and table rows: (tried, whether chosen, its interval drawn), the judged checkpoint's apart."""
    decision = facts.decision
    if decision is None:
        return {"evidence_figure": None, "tried": [], "others": [], "checkpoint": None, "shares": 1}
    checkpoint = story.best_checkpoint(facts)

    def row(one: Any) -> tuple[Any, bool, Any]:
        return one, evidence.is_chosen(decision, one), evidence.forest(decision, one)

    prompts = facts.measured.prompts if facts.measured else 0
    return {
        "evidence_figure": evidence.evidence_paths(decision, checkpoint, prompts),
        "tried": [row(one) for one in evidence.tried_of(decision, checkpoint)],
        "others": [row(one) for one in decision.tried if one.checkpoint != checkpoint],
        "checkpoint": checkpoint,
        "shares": evidence.shares(decision),
    }
