"""``kms local …``: look after a key store.

Errors are left to the command line that carries these commands, which turns every ``KMSError``
into one line and an exit code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from kms_core import Secret
from kms_local import DEFAULT_FILE_NAME
from kms_local.store import KeyStore

Command = Callable[..., Any]


def _secret(_context: click.Context, parameter: click.Parameter, name: str | None) -> Secret | None:
    if name is None:
        return None
    value = os.environ.get(name)
    if not value:
        message = f"environment variable {name} is not set or empty"
        raise click.BadParameter(message, param=parameter)
    return Secret(value)


def _store_options(function: Command) -> Command:
    """The options that say which key store, the same for every command."""
    path = click.option(
        "--path",
        type=click.Path(dir_okay=False, path_type=Path),
        default=DEFAULT_FILE_NAME,
        show_default=True,
        help="The key store's file.",
    )
    passphrase = click.option(
        "--passphrase-env",
        "passphrase",
        metavar="VAR",
        callback=_secret,
        help="The environment variable that holds the passphrase, if there is one.",
    )
    return path(passphrase(function))


_key = click.argument("name")
_version = click.argument("version", type=click.IntRange(min=1))


@click.command()
@_store_options
def keys(path: Path, passphrase: Secret | None) -> None:
    """List keys and versions."""
    for name, key in KeyStore(path, passphrase=passphrase).read().keys.items():
        for version in key.versions.values():
            mark = "  primary" if version.number == key.primary else ""
            created = version.created.isoformat().replace("+00:00", "Z")
            click.echo(f"{name}  {version.number}  {version.state}  {created}{mark}")


@click.command("add-key")
@_key
@_store_options
def add_key(name: str, path: Path, passphrase: Secret | None) -> None:
    """Add a key called NAME."""
    KeyStore(path, passphrase=passphrase).add_key(name)
    click.echo(f"added key {name}, version 1")


@click.command()
@_key
@_store_options
def rotate(name: str, path: Path, passphrase: Secret | None) -> None:
    """Wrap under a new version of key NAME from now on; older versions go on unwrapping."""
    number = KeyStore(path, passphrase=passphrase).rotate(name)
    click.echo(f"key {name} now wraps under version {number}")


@click.command()
@_key
@_version
@_store_options
def disable(name: str, version: int, path: Path, passphrase: Secret | None) -> None:
    """Refuse every use of VERSION of key NAME; it is kept and can be enabled again."""
    store = KeyStore(path, passphrase=passphrase)
    store.disable(name, version)
    click.echo(f"disabled version {version} of key {name}")
    if store.key(name).primary == version:
        click.echo(f"warning: key {name} cannot wrap until it is rotated or enabled", err=True)


@click.command()
@_key
@_version
@_store_options
def enable(name: str, version: int, path: Path, passphrase: Secret | None) -> None:
    """Allow VERSION of key NAME again."""
    KeyStore(path, passphrase=passphrase).enable(name, version)
    click.echo(f"enabled version {version} of key {name}")


COMMANDS: Final[tuple[click.Command, ...]] = (keys, add_key, rotate, disable, enable)
