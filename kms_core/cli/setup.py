"""``init``: a configuration and a local key store to begin with."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Final

import click

from kms_core import config
from kms_core.cli import configuration, files, passphrases
from kms_core.cli.exits import say
from kms_core.errors import ConfigError, InvalidRequest, PluginError

_CONFIGURATION: Final = """\
# Key services for kms. Paths are relative to this file.

# A key store on this machine. Whoever can read its file can decrypt: keep it private, and back
# it up, for without it (and without any other recipient) nothing can be opened again.
[instances.local]
provider = "local"
path = "{path}"
{passphrase}
# A key in AWS KMS (pip install kms-aws). Credentials come from where the AWS SDK finds them.
# [instances.aws-east]
# provider = "aws-kms"
# key = "arn:aws:kms:us-east-1:111122223333:key/..."
# region = "us-east-1"

# Another one in a second region: what is sealed to both can be opened while either is down.
# [instances.aws-west]
# provider = "aws-kms"
# key = "arn:aws:kms:us-west-2:111122223333:key/..."
# region = "us-west-2"

# Who gets a copy of each data key, in order of preference. Default: all of the above.
# [envelope]
# recipients = ["aws-east", "aws-west", "local"]
"""


@click.command()
@click.option(
    "--path",
    "folder",
    metavar="DIR",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder to write to.",
)
@click.option(
    "--passphrase-env",
    metavar="VAR",
    help="Protect the key store with the passphrase in this environment variable.",
)
def init(folder: Path, passphrase_env: str | None) -> None:
    """Write kms.toml and a local key store, and overwrite nothing."""
    local = _local_plugin()
    settings, keys = folder / config.FILE_NAME, folder / local.DEFAULT_FILE_NAME
    for path in (settings, keys):
        if os.path.lexists(path):
            raise InvalidRequest(f"{path} exists already; nothing was written")
    passphrase = passphrases.from_variable(passphrase_env) if passphrase_env is not None else None
    text = _configuration(keys.name, passphrase_env)
    local.KeyStore.create(keys, passphrase=passphrase)
    try:
        files.write_new(settings, text.encode(), 0o644)
    except BaseException:
        keys.unlink(missing_ok=True)
        raise
    _tell(settings, keys)


def _local_plugin() -> Any:
    try:
        return importlib.import_module("kms_local")
    except ModuleNotFoundError as exc:
        raise PluginError("the local key store needs its plugin: pip install kms-local") from exc


def _configuration(path: str, passphrase_env: str | None) -> str:
    line = f'passphrase = {{ env = "{passphrase_env}" }}\n' if passphrase_env else ""
    return _CONFIGURATION.format(path=path, passphrase=line)


def _tell(settings: Path, keys: Path) -> None:
    click.echo(f"wrote {settings}: the configuration, to be edited")
    click.echo(f"wrote {keys}: the keys, readable by you only; back it up")
    there = "" if settings.parent == Path() else f"cd {settings.parent} && "
    click.echo(f"try: {there}echo hello | kms seal -o hello.kms && kms open hello.kms")
    try:
        configuration.check_private(settings)
    except ConfigError as exc:
        say(f"warning: {exc}")
