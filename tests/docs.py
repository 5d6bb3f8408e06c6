"""The generated parts of the documentation: tables of settings and metrics, and the examples of environment files.

``python -m tests.docs`` writes them anew; ``tests/test_docs.py`` holds the files to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from typer import Typer
from typer.testing import CliRunner

from distill.__main__ import app as distill
from gateway.__main__ import cli as gateway
from gateway.telemetry import Metrics
from loadtests.tables import fill, table

ROOT = Path(__file__).parents[1]


def pages() -> Mapping[str, Mapping[str, str]]:
    """Return the generated part for each pair of comments, by page and name."""
    return {
        "gateway/README.md": {"metrics": metrics(), "settings": printed(gateway, "settings")},
        "distill/README.md": {"night settings": printed(distill, "settings")},
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
