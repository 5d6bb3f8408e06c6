"""The nightly path's commands: ``python -m distill COMMAND``."""

from __future__ import annotations

import typer

from distill.cli.dataset import collect, curate
from distill.cli.evaluate import adopt, evaluate, sample
from distill.cli.forget import forget
from distill.cli.reward import reward
from distill.cli.rollout import rollback, watch
from distill.cli.run import EPILOG, night, report, run, schedule, settings
from distill.cli.simulate import simulate
from distill.cli.train import train

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Teach the model its own winners, so that N may fall."""


app.command(epilog=EPILOG)(run)
app.command()(night)
app.command()(schedule)
app.command()(report)
app.command()(settings)
app.command()(collect)
app.command()(curate)
app.command()(forget)
app.command()(sample)
app.command()(adopt)
app.command()(evaluate)
app.command()(simulate)
app.command()(train)
app.command()(reward)
app.command()(watch)
app.command()(rollback)


if __name__ == "__main__":
    app()
