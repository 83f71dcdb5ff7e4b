"""Tables for people."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from typing import Final

import click
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from kms_core.cli.exits import printable

_UNLIMITED: Final = 10_000  # columns: what goes to a file or a program is never wrapped
_STYLES: Final = {
    "healthy": "green",
    "closed": "green",
    "loaded": "green",
    "degraded": "yellow",
    "half-open": "yellow",
    "unhealthy": "red",
    "open": "red",
    "missing": "red",
    "failed": "red",
    "incompatible": "red",
}


def console() -> Console:
    """The screen, or a page without edges where stdout is no screen."""
    width = None if sys.stdout.isatty() else _UNLIMITED
    return Console(width=width, markup=False, highlight=False, emoji=False)


def draw(*parts: RenderableType) -> None:
    """Write to stdout, through click: a pipe that closes is noticed in one place."""
    page = console()
    with page.capture() as captured:
        for part in parts:
            page.print(part)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), color=True)  # rich has decided about colour


def table(*columns: str, folding: Collection[str]) -> Table:
    """An empty table; where it is too wide, the cells of the ``folding`` columns are folded."""
    drawn = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold", no_wrap=column not in folding)
    return drawn


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and values, aligned."""
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column()
    drawn.add_column(overflow="fold")
    for name, value in pairs:
        drawn.add_row(Text(name, "bold"), cell(value))
    return drawn


def cell(text: str, style: str | None = None) -> Text:
    """Text as it is, in the colour of the state that it names or in ``style``."""
    return Text(printable(text), style or _STYLES.get(text, ""))
