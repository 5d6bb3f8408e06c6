"""The nightly path's commands: ``python -m distill COMMAND``."""

from __future__ import annotations

import typer

from distill.dataset.commands import collect, curate
from distill.evaluation.commands import evaluate, sample
from distill.evaluation.simulate_command import simulate
from distill.training.commands import reward

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Teach the model its own winners, so that N may fall."""


app.command()(collect)
app.command()(curate)
app.command()(sample)
app.command()(evaluate)
app.command()(simulate)
app.command()(reward)


if __name__ == "__main__":
    app()
