"""``inspect``: what an envelope of any size says about itself, from its first bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import attrs
import click

from kms_core.cli import files, forms
from kms_core.cli.options import file_argument, json_option

if TYPE_CHECKING:
    from kms_core.inspection import EnvelopeInfo, RecipientInfo

_SUITES: Final = {0x01: "AES-256-GCM, HKDF-SHA-512"}
_WRAP_ALGORITHMS: Final = {
    0x0101: "AWS KMS SYMMETRIC_DEFAULT",
    0x0102: "AWS KMS RSAES_OAEP_SHA_256",
    0x0201: "Azure RSA-OAEP-256",
    0x0202: "Azure Managed HSM A256KW",
    0x0301: "Google Cloud KMS symmetric",
    0x0401: "PKCS#11 AES-KWP",
    0x0402: "PKCS#11 AES-GCM",
    0x0403: "PKCS#11 RSA-OAEP-SHA256",
    0x0501: "local AES-256-GCM",
    0x0502: "local AES-KWP",
    0x0601: "HPKE P-256",
    0x0602: "HPKE ML-KEM-1024 P-384",
    0x0603: "HPKE ML-KEM-768 X25519",
    0x7FFF: "decided by the provider",
}


@click.command()
@file_argument
@json_option
def inspect(file: Path | None, *, as_json: bool) -> None:
    """Describe FILE (default: stdin), without key, configuration or network.

    Shows what the envelope says about itself, which only `kms open` can prove. --json has: form,
    inline, suite, key_id, size, segment_bytes, generation, threshold, scope, stored_context,
    recipients (key_uri, provider, wrap_alg, share_index, blob_bytes), missing, degraded, created.
    """
    with files.reading(file) as source:
        info = _describe(forms.as_bytes(source))
    if as_json:
        click.echo(json.dumps(_as_json(info), indent=2))
    else:
        _draw(info)


def _describe(sealed: IO[bytes]) -> EnvelopeInfo:
    from kms_core.inspection import inspect as describe

    size = files.remaining(sealed)
    head = sealed.read(forms.HEAD_BYTES)
    info = describe(head)
    if size is None:
        size = len(head) + files.skip(sealed)
    return attrs.evolve(info, size=size)


def _as_json(info: EnvelopeInfo) -> dict[str, Any]:
    return {
        "form": info.form,
        "inline": info.inline,
        "suite": info.suite,
        "key_id": info.key_id,
        "size": info.size,
        "segment_bytes": info.segment_bytes,
        "generation": info.generation,
        "threshold": info.threshold,
        "scope": dict(info.scope),
        "stored_context": None if info.stored_context is None else dict(info.stored_context),
        "recipients": [_recipient_as_json(recipient) for recipient in info.recipients],
        "missing": list(info.missing),
        "degraded": info.degraded,
        "created": info.created,
    }


def _recipient_as_json(recipient: RecipientInfo) -> dict[str, Any]:
    return {
        "key_uri": recipient.key_uri,
        "provider": recipient.provider,
        "wrap_alg": recipient.wrap_alg,
        "share_index": recipient.share_index,
        "blob_bytes": recipient.blob_bytes,
    }


def _draw(info: EnvelopeInfo) -> None:
    from kms_core.cli.drawing import cell, draw, facts, table

    recipients = table("recipient", "key", "wrapped with", folding=("key", "wrapped with"))
    for recipient in info.recipients:
        recipients.add_row(
            cell(recipient.provider), cell(recipient.key_uri), cell(_algorithm(recipient.wrap_alg))
        )
    for key_uri in info.missing:
        recipients.add_row(cell("missing"), cell(key_uri, "red"), cell(""))
    draw(facts(_facts(info)), *([recipients] if info.recipients else []))


def _facts(info: EnvelopeInfo) -> list[tuple[str, str]]:
    lines = [
        ("form", _form(info)),
        ("suite", f"{info.suite} ({_SUITES.get(info.suite, 'unknown')})"),
        ("key id", info.key_id),
        ("size", f"{info.size} bytes"),
    ]
    if info.segment_bytes is not None:
        lines.append(("segments", f"of {info.segment_bytes} bytes"))
    if info.generation is not None:
        lines.append(("generation", f"{info.generation} (times rewrapped)"))
        lines.append(("opens with", _needed(info)))
        lines.append(("scope", _sentence(info.scope)))
    if info.stored_context is not None:
        lines.append(("stored context", _sentence(info.stored_context)))
    if info.created is not None:
        lines.append(("created", _date(info.created)))
    if info.degraded:
        lines.append(("degraded", f"{len(info.missing)} missing; `kms rewrap` adds what it can"))
    return lines


def _form(info: EnvelopeInfo) -> str:
    if info.inline:
        return f"{info.form} with its capsule"
    if info.form == "capsule":
        return "capsule without a message"
    return f"compact {info.form}, its capsule is stored elsewhere under the key id"


def _needed(info: EnvelopeInfo) -> str:
    number = len(info.recipients)
    if info.threshold == 1:
        return f"1 of {number} recipients"
    return f"any {info.threshold} of {number} recipients are needed"


def _sentence(context: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in context.items()) or "none"


def _algorithm(number: int) -> str:
    return f"{_WRAP_ALGORITHMS.get(number, 'unknown')} (0x{number:04x})"


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):  # it is a number that anybody may have written
        return f"{seconds} seconds after 1970"
