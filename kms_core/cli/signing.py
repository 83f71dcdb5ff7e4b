"""``sign``, ``verify`` and ``public-key``: signatures by keys that never leave their service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from kms_core.cli import files, objects
from kms_core.cli.exits import InvalidSignature
from kms_core.cli.options import Invocation, file_argument, invocation, output_option
from kms_core.errors import FormatError, InvalidRequest
from kms_core.types import MAC_ALGORITHMS, MAX_SIGNED_BYTES, SIGNATURE_ALGORITHMS, Signature

_WHAT: Final = "the signature is not what `kms sign` writes"
_FIELDS: Final[Mapping[str, objects.Check]] = {
    "instance": objects.optional_string,
    "key_uri": objects.string,
    "key_version": objects.optional_string,
    "algorithm": objects.string,
    "data": objects.binary,
}
_TOO_LARGE: Final = f"up to {MAX_SIGNED_BYTES} bytes are signed: sign a digest of larger files"

_via_option: Final = click.option(
    "--via", metavar="NAME", help="Ask this instance and no other (default: those that sign)."
)


@click.command()
@file_argument
@output_option()
@click.option(
    "--algorithm",
    type=click.Choice(sorted(SIGNATURE_ALGORITHMS | MAC_ALGORITHMS)),
    metavar="NAME",
    help="Such as ECDSA-SHA256 or Ed25519 (default: the one the key prefers).",
)
@_via_option
@invocation
def sign(
    invocation: Invocation,
    file: Path | None,
    output: Path | None,
    algorithm: str | None,
    via: str | None,
) -> None:
    """Let a key service sign FILE (default: stdin), up to 1 MiB.

    Writes a JSON object: instance, key_uri, key_version, algorithm, data (base64).
    """
    from kms_core.cli.clients import connect

    message = files.read(file, limit=MAX_SIGNED_BYTES, too_large=InvalidRequest(_TOO_LARGE))
    with connect(invocation) as (kms, _):
        signature = kms.sign(message, algorithm=algorithm, via=via)
        files.write(output, objects.dump({name: getattr(signature, name) for name in _FIELDS}))


@click.command()
@file_argument
@click.option(
    "-s",
    "--signature",
    metavar="PATH",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The JSON object that `kms sign` wrote.",
)
@_via_option
@invocation
def verify(invocation: Invocation, file: Path | None, signature: Path, via: str | None) -> None:
    """Check the signature of FILE (default: stdin); exits with 4 if it is not valid.

    Uses the public key of the instance that has the key which the signature names.
    """
    from kms_core.cli.clients import connect

    too_large = FormatError(f"{_WHAT}: it is larger than {objects.MAX_JSON_BYTES} bytes")
    text = files.read(signature, limit=objects.MAX_JSON_BYTES, too_large=too_large)
    claimed = Signature(**objects.load(text, _FIELDS, _WHAT))
    message = files.read(file, limit=MAX_SIGNED_BYTES, too_large=InvalidRequest(_TOO_LARGE))
    with connect(invocation) as (kms, _):
        if not kms.verify(message, claimed, via=via):
            raise InvalidSignature(claimed.key_uri)
        click.echo(f"valid: {claimed.algorithm} by {claimed.key_uri}")


@click.command("public-key")
@output_option()
@_via_option
@invocation
def public_key(invocation: Invocation, output: Path | None, via: str | None) -> None:
    """Write the public key of a signing instance, in PEM."""
    from kms_core.cli.clients import connect

    with connect(invocation) as (kms, _):
        key = load_der_public_key(kms.public_key(via=via).der)
        files.write(output, key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
