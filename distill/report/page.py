"""The report of a night: one self-contained HTML file, and the same facts as JSON."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from distill.evaluation.guardrails import JUDGE
from distill.evaluation.verdict import CheckpointResult
from distill.report import curves, figures, gate_figures, view
from distill.report.facts import NightFacts
from distill.report.formats import FILTERS, SHOWN_CHARACTERS, reason, visible
from gateway.files import write_atomically

HTML_FILE = "report.html"


def render(facts: NightFacts) -> str:
    """Return the page: it has no script and fetches nothing, and every text in it is escaped."""
    html = _template().render(
        night=facts,
        view=view,
        JUDGE=JUDGE,
        shown_characters=SHOWN_CHARACTERS,
        **_records(facts),
        **_figures(facts),
        **_gate(facts),
    )
    return visible(html)


def write_report(facts: NightFacts, folder: Path) -> Path:
    """Write ``report.json`` and ``report.html`` atomically; return the page's file."""
    facts.write(folder)
    path = folder / HTML_FILE
    write_atomically(path, render(facts).encode())
    return path


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("distill.report"),
        autoescape=True,  # answers and questions are untrusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("report.html.j2")


def _records(facts: NightFacts) -> dict[str, Any]:
    """Return what became of the records, and how many records that accounts for."""
    collected = facts.collected
    if collected is None:
        return {"fates": [], "accounted": 0}
    fates = [("training examples", collected.examples, "new"), ("held out for measuring", collected.held_out, "best")]
    left_out = sorted(collected.excluded.items(), key=lambda item: -item[1])
    fates += [(f"left out: {reason(name)}", number, "old") for name, number in left_out]
    return {"fates": fates, "accounted": sum(number for _, number, _ in fates)}


def _figures(facts: NightFacts) -> dict[str, Any]:
    verdict, measured = facts.verdict, facts.measured
    found: dict[str, Any] = {
        "curves_figure": curves.reward_curves(facts),
        "loss_figure": figures.loss_curve(facts),
        "gradient_figure": figures.gradient_norms(facts),
        "history_figure": figures.n_over_nights(facts.history, facts),
    }
    if verdict is None or measured is None:
        return found
    return found | {
        "reward_figure": figures.histograms(measured.rewards, "reward of one sample", view.spread_title(verdict)),
        "length_figure": figures.histograms(measured.lengths, "tokens of one answer", view.length_title(measured)),
    }


def _gate(facts: NightFacts) -> dict[str, Any]:
    """Return the gate's figure, and its table rows for the best checkpoint and for the others."""
    verdict = facts.verdict
    if verdict is None:
        return {"evidence_figure": None, "tests": [], "others": [], "sharing": 1}
    best = verdict.best

    def rows(result: CheckpointResult) -> list[dict[str, Any]]:
        chosen = [view.is_chosen(verdict, result, test) for test in result.tests]
        return [
            {
                "checkpoint": result.checkpoint,
                "test": test,
                "chosen": is_chosen,
                "figure": gate_figures.forest(verdict, test, chosen=is_chosen),
                "finding": view.finding(verdict, result, test),
            }
            for test, is_chosen in zip(result.tests, chosen, strict=True)
        ]

    return {
        "evidence_figure": gate_figures.evidence_paths(verdict),
        "tests": rows(best),
        "others": [row for result in verdict.candidates if result != best for row in rows(result)],
        "sharing": gate_figures.checkpoints_sharing_alpha(verdict),
    }
