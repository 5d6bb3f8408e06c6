"""The generated parts of the documentation: tables of settings, metrics and measurements, and the ``.env`` examples.

``python -m tests.docs`` writes them; ``tests/test_docs.py`` compares the files with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from typer import Typer
from typer.testing import CliRunner

from distill.__main__ import app as distill
from gateway.__main__ import cli as gateway
from gateway.telemetry import Metrics
from loadtests.tables import blocks, fill, table, titled

ROOT = Path(__file__).parents[1]
RESULTS = ("bench", "cost", "faults", "hostile", "load", "mutants", "soak", "starts")


def pages() -> Mapping[str, Mapping[str, str]]:
    """Return the generated part for each pair of comments, by page and name."""
    return {
        "gateway/README.md": {"metrics": metrics(), "settings": printed(gateway, "settings")},
        "distill/README.md": {"night settings": printed(distill, "settings")},
        "loadtests/README.md": measured(),
    }


def files() -> Mapping[str, str]:
    """Return the files that are generated as a whole, by their path."""
    return {
        ".env.example": printed(gateway, "settings", "--env"),
        ".env.night.example": printed(distill, "settings", "--env"),
    }


def metrics() -> str:
    """Render a table of the gateway's metrics."""
    rows = []
    for family in Metrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append({"name": f"`{name}`", "type": family.type, "meaning": family.documentation})
    return table([("metric", "name", ""), ("type", "type", ""), ("meaning", "meaning", "")], rows)


def measured() -> Mapping[str, str]:
    """Render the tables of the recorded measurements."""
    tables: dict[str, str] = {}
    for name in RESULTS:
        found = json.loads((ROOT / "loadtests/results" / f"{name}.json").read_text(encoding="utf-8"))
        tables |= {place: titled(found["about"], rendered) for place, rendered in blocks(found).items()}
    return tables


def printed(app: Typer, *words: str) -> str:
    """Return the output of a command line."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False).output


def main() -> None:
    """Write all generated parts and files."""
    for page, parts in pages().items():
        for name, content in parts.items():
            fill(ROOT / page, name, content.strip())
    for path, content in files().items():
        (ROOT / path).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
