"""``encrypt`` and ``decrypt``: a few bytes, by one key service itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from kms_core.cli import files, objects
from kms_core.cli.options import (
    Invocation,
    context_option,
    file_argument,
    invocation,
    output_option,
)
from kms_core.errors import FormatError, InvalidRequest
from kms_core.types import Ciphertext

MAX_PLAINTEXT_BYTES: Final = 4096  # what every service takes

_WHAT: Final = "the input is not what `kms encrypt` writes"


@click.command()
@file_argument
@output_option()
@context_option
@click.option("--via", metavar="NAME", help="Ask this instance and no other.")
@invocation
def encrypt(
    invocation: Invocation,
    file: Path | None,
    output: Path | None,
    context: Mapping[str, str],
    via: str | None,
) -> None:
    """Let one key service encrypt FILE (default: stdin), 1 to 4096 bytes.

    Writes a JSON object: instance, key_uri, key_version, wrap_alg, data (base64). While that
    service is down nobody can decrypt it; `kms seal` is for what must stay readable.
    """
    from kms_core.cli.clients import connect

    too_large = InvalidRequest(
        f"direct encryption takes 1 to {MAX_PLAINTEXT_BYTES} bytes: `kms seal` takes more"
    )
    plaintext = files.read(file, limit=MAX_PLAINTEXT_BYTES, too_large=too_large)
    with connect(invocation) as (kms, _):
        files.write(output, _dump(kms.encrypt(plaintext, context, via=via)))


@click.command()
@file_argument
@output_option(private=True)
@context_option
@invocation
def decrypt(
    invocation: Invocation,
    file: Path | None,
    output: Path | None,
    context: Mapping[str, str],
) -> None:
    """Decrypt FILE (default: stdin), the JSON object that `kms encrypt` wrote."""
    from kms_core.cli.clients import connect

    too_large = FormatError(f"{_WHAT}: it is larger than {objects.MAX_JSON_BYTES} bytes")
    ciphertext = _load(files.read(file, limit=objects.MAX_JSON_BYTES, too_large=too_large))
    with connect(invocation) as (kms, _):
        files.write(output, kms.decrypt(ciphertext, context), private=True)


def _dump(ciphertext: Ciphertext) -> bytes:
    return objects.dump({name: getattr(ciphertext, name) for name in _FIELDS})


def _load(text: bytes) -> Ciphertext:
    """The ciphertext in a JSON object; raises ``FormatError`` unless it is one of ours."""
    return Ciphertext(**objects.load(text, _FIELDS, _WHAT))


_FIELDS: Final[Mapping[str, objects.Check]] = {
    "instance": objects.optional_string,
    "key_uri": objects.string,
    "key_version": objects.optional_string,
    "wrap_alg": objects.number,
    "data": objects.binary,
}
