"""``encrypt`` and ``decrypt``: a few bytes, by one key service itself."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from kms_core.cli import files
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
MAX_JSON_BYTES: Final = 64 << 10  # several times what the largest ciphertext takes

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

    too_large = FormatError(f"{_WHAT}: it is larger than {MAX_JSON_BYTES} bytes")
    ciphertext = _load(files.read(file, limit=MAX_JSON_BYTES, too_large=too_large))
    with connect(invocation) as (kms, _):
        files.write(output, kms.decrypt(ciphertext, context), private=True)


def _dump(ciphertext: Ciphertext) -> bytes:
    fields = {
        "instance": ciphertext.instance,
        "key_uri": ciphertext.key_uri,
        "key_version": ciphertext.key_version,
        "wrap_alg": ciphertext.wrap_alg,
        "data": base64.b64encode(ciphertext.data).decode("ascii"),
    }
    return (json.dumps(fields) + "\n").encode("ascii")


def _load(text: bytes) -> Ciphertext:
    """The ciphertext in a JSON object; raises ``FormatError`` unless it is one of ours."""
    try:
        fields = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise FormatError(f"{_WHAT}: it is not JSON") from None
    if not isinstance(fields, dict):
        raise FormatError(f"{_WHAT}: it is no JSON object")
    for name in _FIELDS:
        if name not in fields:
            raise FormatError(f"{_WHAT}: {name} is missing")
    for name in fields:
        if name not in _FIELDS:
            raise FormatError(f"{_WHAT}: it has an unknown field {name!r}")
    return Ciphertext(**{name: check(name, fields[name]) for name, check in _FIELDS.items()})


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise FormatError(f"{_WHAT}: a field is given twice")
    return fields


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{_WHAT}: {name} is no string")
    return value


def _optional_string(name: str, value: Any) -> str | None:
    return None if value is None else _string(name, value)


def _number(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 0xFFFF:  # True is an int as well
        raise FormatError(f"{_WHAT}: {name} is no number from 0 to 65535")
    return value


def _bytes(name: str, value: Any) -> bytes:
    try:
        return base64.b64decode(_string(name, value), validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{_WHAT}: {name} is not base64") from None


_FIELDS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "instance": _optional_string,
    "key_uri": _string,
    "key_version": _optional_string,
    "wrap_alg": _number,
    "data": _bytes,
}
