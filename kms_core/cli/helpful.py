"""The kind of group that ``kms`` and the commands of plugins have in common."""

from __future__ import annotations

import click

from kms_core.cli.exits import ExitCode


class HelpfulGroup(click.Group):
    """A group that explains itself, as a usage error, when no command is given."""

    group_class = type  # groups made below it are of its class

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, but the same in all its versions when there are no arguments."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(ExitCode.USAGE)
        return super().parse_args(ctx, args)
