"""What several commands have in common: their options, and what the group passes down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from attrs import frozen

F = TypeVar("F", bound=Callable[..., Any])


@frozen
class Invocation:
    """The options of ``kms`` itself, for its commands."""

    config: Path | None = None
    verbose: bool = False


invocation = click.make_pass_decorator(Invocation)


def _pairs(
    _ctx: click.Context, _parameter: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    """Messages name positions and names only: values may be personal data."""
    pairs: dict[str, str] = {}
    for number, text in enumerate(values, 1):
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"number {number} has no '='; write NAME=VALUE")
        if name in pairs:
            raise click.BadParameter(f"{name!r} is given twice")
        pairs[name] = value
    return pairs


def _standard_stream(
    _ctx: click.Context, _parameter: click.Parameter, value: str | None
) -> Path | None:
    """``None`` stands for stdin or stdout."""
    return None if value in (None, "-") else Path(value)


def file_argument(function: F) -> F:
    """``FILE``, a ``Path`` or ``None`` for stdin."""
    return click.argument("file", default="-", callback=_standard_stream)(function)


def output_option(*, private: bool = False) -> Callable[[F], F]:
    """``--output``, a ``Path`` or ``None`` for stdout."""
    help_text = "Write to PATH, whole or not at all, instead of stdout."
    if private:
        help_text += " A new file is readable by you only."
    return click.option("-o", "--output", metavar="PATH", callback=_standard_stream, help=help_text)


context_option: Final = click.option(
    "-c",
    "--context",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_pairs,
    help="Bind to this context, which is not stored and must be given again. Repeatable.",
)

stored_context_option: Final = click.option(
    "--stored-context",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_pairs,
    help="Bind to this context and store it in clear inside. Repeatable.",
)

json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Write JSON, for programs."
)
