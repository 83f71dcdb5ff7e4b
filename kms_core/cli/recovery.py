"""``recovery``: keys for the day on which no key service is left."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

import click

from kms_core import offline
from kms_core.cli.exits import printable
from kms_core.cli.helpful import HelpfulGroup
from kms_core.errors import InvalidRequest
from kms_core.offline import KeyFile, WrappingKey
from kms_core.types import Secret

_TABLE: Final = """\
# {kind}
[instances.recovery]
provider = "hpke"
key = "{key_uri}"
public_key = {public}
# Only where envelopes are to be opened:
# private_key = {private}
"""
_UNLOCKING: Final = '# passphrase = {{ env = "{variable}" }}\n'
_ANY_VARIABLE: Final = "RECOVERY_PASSPHRASE"  # for the table, where the passphrase was typed


def _nameable(_ctx: click.Context, _parameter: click.Parameter, path: Path) -> Path:
    """A configuration is Unicode text: it has to be able to name the file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise click.BadParameter("the name is not Unicode text; choose another") from None
    return path


_new_file: Final = click.Path(dir_okay=False, path_type=Path)
_passphrase_env: Final = click.option(
    "--passphrase-env",
    metavar="VAR",
    help="The environment variable that holds the private key's passphrase. "
    "Default: ask for it on the terminal.",
)


@click.group(cls=HelpfulGroup)
def recovery() -> None:
    """Make recovery keys: recipients that are files and need no key service.

    Sealing takes the public key alone. Whoever has the private key can open everything that was
    sealed to it: keep it apart from the machines that seal.
    """


@recovery.command()
@click.option(
    "--private",
    metavar="FILE",
    required=True,
    type=_new_file,
    callback=_nameable,
    help="Where to write the private key, readable by you only.",
)
@click.option(
    "--public",
    metavar="FILE",
    required=True,
    type=_new_file,
    callback=_nameable,
    help="Where to write the public key.",
)
@click.option(
    "--kind",
    type=click.Choice([*offline.KINDS]),
    default=offline.DEFAULT_KIND,
    show_default=True,
    help="The algorithms; p256 does not withstand a quantum computer.",
)
@_passphrase_env
@click.option("--no-passphrase", is_flag=True, help="Leave the private key unprotected.")
def keygen(
    private: Path, public: Path, kind: str, passphrase_env: str | None, *, no_passphrase: bool
) -> None:
    """Make a key pair, and overwrite nothing.

    Writes the table for kms.toml to stdout. The passphrase must withstand guessing by itself (six
    random words, say): the file format slows an attacker down only a little.
    """
    passphrase = _new_passphrase(passphrase_env, none=no_passphrase)
    key = offline.write_key_pair(
        private_path=private, public_path=public, passphrase=passphrase, kind=kind
    )
    for path, what in (
        (private, "the private key; keep it and a copy where no key service is needed to reach it"),
        (public, "the public key, for the machines that seal"),
    ):
        click.echo(f"wrote {printable(str(path))}: {what}", err=True)
    click.echo(_table(key, private, public), nl=False)
    if passphrase is not None:
        click.echo(_UNLOCKING.format(variable=passphrase_env or _ANY_VARIABLE), nl=False)


@recovery.command()
@click.argument("file", type=click.Path(path_type=Path))
@_passphrase_env
def show(file: Path, passphrase_env: str | None) -> None:
    """Print key URI and kind of a public or private key's FILE."""
    key_file = KeyFile.read(file)
    if key_file.is_private:
        passphrase = _passphrase(passphrase_env) if key_file.is_encrypted else None
        key = key_file.pair(passphrase).wrapping
    else:
        key = key_file.public()
    click.echo(f"{key.key_uri}  {key.kind.name}")


def _new_passphrase(variable: str | None, *, none: bool) -> Secret | None:
    if not none:
        return _passphrase(variable, confirm=True)
    if variable is not None:
        raise click.UsageError("--passphrase-env and --no-passphrase exclude each other")
    return None


def _passphrase(variable: str | None, *, confirm: bool = False) -> Secret:
    if variable is None:
        return _ask(confirm=confirm)
    value = os.environ.get(variable)
    if not value:
        raise InvalidRequest(f"environment variable {variable} is not set: it is the passphrase")
    return Secret(value)


def _ask(*, confirm: bool) -> Secret:
    if not _at_a_terminal():
        otherwise = ", or --no-passphrase to do without" if confirm else ""
        raise click.UsageError(
            f"no terminal to ask for the passphrase on; give --passphrase-env VAR{otherwise}"
        )
    return Secret(
        click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    )


def _at_a_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _table(key: WrappingKey, private: Path, public: Path) -> str:
    return _TABLE.format(
        kind=key.kind.name,
        key_uri=key.key_uri,
        public=_toml(public.absolute()),
        private=_toml(private.absolute()),
    )


def _toml(path: Path) -> str:
    """A basic string of TOML, which is one of JSON except that it has no bare DEL."""
    return json.dumps(str(path), ensure_ascii=False).replace("\x7f", "\\u007F")
