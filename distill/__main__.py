"""The nightly path's commands: ``python -m distill COMMAND``."""

from __future__ import annotations

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Teach the model its own winners, so that N may fall."""


if __name__ == "__main__":
    app()
