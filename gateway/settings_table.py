"""The settings as a Markdown table and as an example of an environment file, both made from the classes themselves.

``python -m gateway settings`` prints the gateway's table and ``--env`` its ``.env.example``; a test keeps both files
equal to that. ``python -m distill settings`` does the same for the night.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway import settings

_ENV_HEADER = """\
# Every setting with its default. Take the sign off a line to change it, then load the file before the start:
#   cp .env.example .env && set -a && . ./.env && set +a && python -m gateway serve
# Made by `python -m gateway settings --env`.
"""

Rows = Mapping[str, tuple[str, str]]
"""Default and meaning of each variable, as ``gateway.settings.variables`` gives them."""


def markdown(rows: Rows | None = None) -> str:
    """A Markdown table of variable, default and meaning; the gateway's, if no rows are given."""
    lines = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {_one_line(meaning)} |"
        for name, (default, meaning) in (settings.variables() if rows is None else rows).items()
    ]
    return "\n".join(["| Variable | Default | Meaning |", "|---|---|---|", *lines]) + "\n"


def env_example(rows: Rows | None = None, header: str = _ENV_HEADER) -> str:
    """An environment file in which every variable is commented out and shows its default."""
    blocks = [
        f"# {_one_line(meaning)}\n#{name}={default}\n"
        for name, (default, meaning) in (settings.variables() if rows is None else rows).items()
    ]
    return "\n".join([header, *blocks])


def _one_line(text: str) -> str:
    return " ".join(text.split())
