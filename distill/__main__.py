"""The nightly path's commands: ``python -m distill COMMAND``."""

from __future__ import annotations

import typer

from distill.cli.adopt import adopt
from distill.cli.collect import collect
from distill.cli.curate import curate
from distill.cli.evaluate import evaluate
from distill.cli.forget import forget
from distill.cli.night import night
from distill.cli.report import report
from distill.cli.reward import reward
from distill.cli.rollback import rollback
from distill.cli.run import EPILOG, run
from distill.cli.sample import sample
from distill.cli.schedule import schedule
from distill.cli.settings import settings
from distill.cli.simulate import simulate
from distill.cli.train import train
from distill.cli.watch import watch

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Train the model on its own winners each night, so that N can fall."""


app.command(epilog=EPILOG)(run)
for command in (
    night,
    schedule,
    report,
    settings,
    collect,
    curate,
    forget,
    sample,
    adopt,
    evaluate,
    simulate,
    train,
    reward,
    watch,
    rollback,
):
    app.command()(command)


if __name__ == "__main__":
    app()
