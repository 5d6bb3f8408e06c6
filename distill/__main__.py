"""The nightly path's commands: ``python -m distill COMMAND``."""

from __future__ import annotations

import typer

from distill.dataset.commands import collect, curate
from distill.evaluation.commands import adopt, evaluate, sample
from distill.evaluation.simulate_command import simulate
from distill.nightly.commands import EPILOG, night, report, run, schedule, settings
from distill.nightly.forget_command import forget
from distill.promotion.commands import rollback, watch
from distill.training.commands import reward
from distill.training.train_command import train

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
