"""The settings in words: README's table and ``.env.example``, both made from ``gateway.settings`` itself.

``python -m gateway settings`` prints the one and ``--env`` the other; a test keeps both files equal to that.
"""

from __future__ import annotations

from gateway import settings

_ENV_HEADER = """\
# Every setting with its default. Take the sign off a line to change it, then load the file before the start:
#   cp .env.example .env && set -a && . ./.env && set +a && python -m gateway serve
# Made by `python -m gateway settings --env`.
"""


def markdown() -> str:
    """A Markdown table of variable, default and meaning."""
    rows = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {_one_line(meaning)} |"
        for name, (default, meaning) in settings.variables().items()
    ]
    return "\n".join(["| Variable | Default | Meaning |", "|---|---|---|", *rows]) + "\n"


def env_example() -> str:
    """An environment file in which every variable is commented out and shows its default."""
    blocks = [
        f"# {_one_line(meaning)}\n#{name}={default}\n" for name, (default, meaning) in settings.variables().items()
    ]
    return "\n".join([_ENV_HEADER, *blocks])


def _one_line(text: str) -> str:
    return " ".join(text.split())
