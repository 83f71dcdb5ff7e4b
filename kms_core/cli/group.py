"""The command ``kms`` itself: finds commands, and turns whatever goes wrong into one line.

Built-in commands are a table of names, so that none is imported before it is called.  Any other
name is that of an installed plugin, which may bring commands of its own.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from attrs import frozen

from kms_core.cli.exits import MEANINGS, ExitCode, complaint, exit_code, say
from kms_core.cli.helpful import HelpfulGroup
from kms_core.cli.options import Invocation
from kms_core.config import CONFIG_VARIABLE
from kms_core.errors import KMSError


@frozen
class Builtin:
    """Where a command is defined, and what ``kms --help`` says of it."""

    target: str
    summary: str


BUILTINS: Final[Mapping[str, Builtin]] = {
    "init": Builtin("kms_core.cli.setup:init", "Write kms.toml and a local key store here."),
    "seal": Builtin("kms_core.cli.envelopes:seal", "Encrypt under the keys of all recipients."),
    "open": Builtin("kms_core.cli.envelopes:open_", "Decrypt an envelope."),
    "inspect": Builtin("kms_core.cli.describing:inspect", "Describe an envelope; needs no key."),
    "rewrap": Builtin("kms_core.cli.rewrapping:rewrap", "Repair or change the recipients."),
    "encrypt": Builtin("kms_core.cli.direct:encrypt", "Let one key service encrypt a few bytes."),
    "decrypt": Builtin("kms_core.cli.direct:decrypt", "Undo `kms encrypt`."),
    "sign": Builtin("kms_core.cli.signing:sign", "Let a key service sign."),
    "verify": Builtin("kms_core.cli.signing:verify", "Check what `kms sign` made."),
    "public-key": Builtin("kms_core.cli.signing:public_key", "Write a signing key's public half."),
    "health": Builtin("kms_core.cli.status:health", "Ask every instance whether it is well."),
    "plugins": Builtin("kms_core.cli.status:plugins", "List the installed plugins."),
    "conformance": Builtin(
        "kms_core.cli.conformance:conformance", "Check that an instance keeps the contract."
    ),
    "new-plugin": Builtin(
        "kms_core.cli.new_plugin:new_plugin", "Write a provider plugin to begin with."
    ),
    "recovery": Builtin(
        "kms_core.cli.recovery:recovery", "Make recovery keys, which need no key service."
    ),
    "demo": Builtin("kms_core.cli.demo:demo", "Watch an outage pass, on servers of its own."),
}


class Commands(HelpfulGroup):
    """The built-in commands by table, then the plugins by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """The built-in commands and the names of the installed plugins."""
        from kms_core.cli import extensions

        return [*BUILTINS, *(name for name in extensions.installed() if name not in BUILTINS)]

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        cmd_name: str,
    ) -> click.Command | None:
        """Import a command; ``None`` if neither built-in nor the name of a plugin."""
        from kms_core.cli import extensions

        if cmd_name in BUILTINS:
            module, _, name = BUILTINS[cmd_name].target.partition(":")
            command: click.Command = getattr(importlib.import_module(module), name)
            return command
        return extensions.commands_of(cmd_name) if extensions.is_plugin(cmd_name) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name for one that is unknown."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            ctx.fail(f"no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return name, command, args[1:]

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Two lists, neither of which imports what it lists."""
        from kms_core.cli import extensions

        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in BUILTINS.items()])
        found = extensions.installed()
        if found:
            with formatter.section("Plugins (those with commands of their own: kms PLUGIN --help)"):
                formatter.write_dl(list(found.items()))

    def format_epilog(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """What the exit codes mean."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), text) for code, text in MEANINGS.items()])

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; only ``ctx.exit`` decides about the exit code."""
        try:
            super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.INTERRUPTED)
        except BrokenPipeError:
            _stop_writing()
            ctx.exit(ExitCode.BROKEN_PIPE)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run ``kms`` and exit; errors become one line on stderr, never a traceback."""
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra) or ExitCode.OK
        except Exception as exc:  # noqa: BLE001  whatever it is, nobody above could tell the user
            code = _report(exc)
        sys.exit(code)


def _report(error: Exception) -> ExitCode | int:
    """Say what went wrong; the exit code."""
    match error:
        case KMSError():
            say(complaint(error))
            return exit_code(error)
        case click.exceptions.Abort():
            return ExitCode.INTERRUPTED
        case click.ClickException():
            say(_usage(error))
            return error.exit_code
        case OSError():
            say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            return ExitCode.FAILED
    where = traceback.extract_tb(error.__traceback__)[-1]
    # not the message: from an unexpected error it may quote anything, even plaintext
    place = f"{Path(where.filename).name}, line {where.lineno}"
    say(f"internal error: {type(error).__name__} in {place}; please report this")
    return ExitCode.FAILED


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".")
    return f"{message} (see `{context.command_path} --help`)" if context else message


def _stop_writing() -> None:
    """Let the interpreter flush what is left into nothing, without a complaint."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    metavar="PATH",
    envvar=CONFIG_VARIABLE,
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="The configuration. Default: ./kms.toml if only you can write it, then kms/kms.toml in "
    "your configuration folder, then the environment of the key services.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr which configuration was used.")
@click.version_option(
    None, "--version", package_name="kms-core", message="kms %(version)s", help="Show the version."
)
@click.pass_context
def kms(ctx: click.Context, config: Path | None, *, verbose: bool) -> None:
    """Encrypt with keys that several key services hold at once.

    What is sealed stays readable while any one of the services is down.
    """
    ctx.obj = Invocation(config, verbose)
