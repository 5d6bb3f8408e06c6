"""Tables of counts, as several commands print them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table


def count_table(title: str, counts: Mapping[str, int]) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    return table
