"""``python -m distill settings``: the table of settings."""

from __future__ import annotations

from typing import Annotated

import typer

from distill import settings as distill_settings
from gateway import environment

_ENV_HEADER = """\
# Every setting of the night with its default; where Redis, the backend and the reward model are it reads from the
# gateway's own (.env.example). Take the sign off a line to change it, then load both files before the start.
# Made by `python -m distill settings --env`.
"""


def settings(
    env: Annotated[
        bool, typer.Option("--env", help="As .env.night.example, not as the table in distill/README.md.")
    ] = False,
) -> None:
    """Print every setting of the night, its default and its meaning."""
    rows = distill_settings.variables()
    typer.echo(environment.example(rows, _ENV_HEADER) if env else environment.table(rows), nl=False)
