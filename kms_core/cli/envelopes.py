"""``seal``, ``open``, ``inspect`` and ``rewrap``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kms_core.cli import files
from kms_core.cli.exits import say
from kms_core.cli.options import (
    Invocation,
    context_option,
    file_argument,
    invocation,
    json_option,
    output_option,
    stored_context_option,
)
from kms_core.errors import FormatError, InvalidRequest, RewrapConflict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kms_core.cli.clients import Witness
    from kms_core.envelope import EnvelopeInfo, RecipientInfo

_MAGIC: Final = b"\xc1"  # never the first byte of text
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
@output_option()
@context_option
@stored_context_option
@click.option("--armor", is_flag=True, help="Write base64url text, for mails and variables.")
@invocation
def seal(
    invocation: Invocation,
    file: Path | None,
    output: Path | None,
    context: Mapping[str, str],
    stored_context: Mapping[str, str],
    *,
    armor: bool,
) -> None:
    """Encrypt FILE (default: stdin) under the keys of all recipients.

    Takes up to 64 MiB. If a recipient cannot be reached it is left out, which is said on stderr
    and recorded in the envelope; `kms rewrap` adds it later.
    """
    from kms_core.cli.clients import connect

    _refuse_terminal(output, armor=armor)
    plaintext = files.read(
        file,
        limit=files.MAX_PLAINTEXT_BYTES,
        too_large=InvalidRequest("the input is larger than 64 MiB: seal it in parts"),
    )
    with connect(invocation) as (kms, witness):
        sealed = kms.seal(plaintext, context, stored_context=stored_context or None)
        files.write(output, _as_text(sealed) if armor else sealed)
        _say_degraded(witness, output)


@click.command("open")
@file_argument
@output_option(private=True)
@context_option
@invocation
def open_(
    invocation: Invocation,
    file: Path | None,
    output: Path | None,
    context: Mapping[str, str],
) -> None:
    """Decrypt FILE (default: stdin), an envelope as bytes or as text.

    Needs each --context it was sealed with. Nothing is written unless all of it is authentic.
    """
    from kms_core.cli.clients import connect

    sealed = _envelope(_read_envelope(file))
    with connect(invocation) as (kms, _):
        files.write(output, kms.open(sealed, context), private=True)


@click.command()
@file_argument
@json_option
def inspect(file: Path | None, *, as_json: bool) -> None:
    """Describe FILE (default: stdin), without key, configuration or network.

    Shows what the envelope says about itself, which only `kms open` can prove. --json has: form,
    inline, suite, key_id, size, generation, threshold, scope, stored_context, recipients
    (key_uri, provider, wrap_alg, share_index, blob_bytes), missing, degraded, created.
    """
    from kms_core.envelope import inspect as describe

    info = describe(_envelope(_read_envelope(file)))
    if as_json:
        click.echo(json.dumps(_as_json(info), indent=2))
    else:
        _draw(info)


@click.command()
@file_argument
@output_option()
@click.option(
    "--repair/--no-repair",
    default=True,
    show_default=True,
    help="Add every configured recipient that is missing.",
)
@click.option("--add", metavar="NAME", multiple=True, help="Add this instance. Repeatable.")
@click.option(
    "--remove",
    metavar="NAME|URI",
    multiple=True,
    help="Remove the recipients of this instance, or with this key URI. Repeatable.",
)
@invocation
def rewrap(
    invocation: Invocation,
    file: Path | None,
    output: Path | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    *,
    repair: bool,
) -> None:
    """Change who can open FILE (default: stdin) without touching its body.

    Without -o a FILE is rewritten in place, unless somebody else changed it meanwhile; stdin is
    rewritten to stdout.
    """
    from kms_core.cli.clients import connect
    from kms_core.envelope import inspect as describe

    if file is not None and output is None:
        _refuse_special(file)
    old = _read_envelope(file)
    sealed = _envelope(old)
    if file is None:
        _refuse_terminal(output, armor=isinstance(sealed, str))
    with connect(invocation) as (kms, witness):
        new = kms.rewrap(sealed, add=add, remove=remove, repair=repair)
        written = _as_text(new) if isinstance(sealed, str) else new
        _write_rewrapped(file, output, old, written)
        say(_changes(describe(sealed), describe(new), witness))


# --- input and output ----------------------------------------------------------------------------


def _read_envelope(file: Path | None) -> bytes:
    too_large = FormatError("the input is larger than any envelope")
    return files.read(file, limit=files.MAX_ENVELOPE_BYTES, too_large=too_large)


def _envelope(data: bytes) -> bytes | str:
    """The envelope in the form it came in: bytes, or text without its line end."""
    if data.startswith(_MAGIC):
        return data
    try:
        return data.decode("ascii").rstrip("\r\n")
    except UnicodeDecodeError:
        raise FormatError("the input is neither an envelope nor the text form of one") from None


def _as_text(envelope: bytes) -> bytes:
    from kms_core.envelope import armor

    return f"{armor(envelope)}\n".encode("ascii")


def _refuse_terminal(output: Path | None, *, armor: bool) -> None:
    if not armor and files.is_terminal(output):
        raise click.UsageError("an envelope is binary: write it with -o FILE, or use --armor")


def _refuse_special(file: Path) -> None:
    """A pipe or a device cannot be rewritten in place."""
    if file.exists() and not file.is_file():
        raise click.UsageError(f"{file} is not a regular file: say with -o where to write")


def _write_rewrapped(file: Path | None, output: Path | None, old: bytes, new: bytes) -> None:
    if file is None or output is not None:
        files.write(output, new)
    elif new != old:
        _rewrite(file, old, new)


def _rewrite(file: Path, old: bytes, new: bytes) -> None:
    """Replace the file's content only if it is still what was read."""

    def check() -> None:
        if file.read_bytes() != old:
            raise RewrapConflict(f"{file} was changed by somebody else meanwhile: run it again")

    files.replace(file, new, before_rename=check)


# --- what happened -------------------------------------------------------------------------------


def _say_degraded(witness: Witness, output: Path | None) -> None:
    if witness.missing:
        without = ", ".join(f"{name} ({witness.why(name)})" for name in witness.missing)
        pronoun = "it" if len(witness.missing) == 1 else "them"
        say(
            f"degraded: sealed without {without}; "
            f"`kms rewrap --repair {output or 'FILE'}` adds {pronoun}"
        )


def _changes(before: EnvelopeInfo, after: EnvelopeInfo, witness: Witness) -> str:
    """One line on what a rewrap did and who holds the key now."""
    changes = []
    if witness.wrapped:
        changes.append(f"added {', '.join(witness.wrapped)}")
    if removed := _uris(before) - _uris(after):
        changes.append(f"removed {', '.join(sorted(removed))}")
    if not changes:
        changes.append("nothing to do" if before == after else "noted who is missing")
    if witness.unverified:
        names = ", ".join(witness.unverified)
        changes.append(f"not verified for lack of permission to unwrap: {names}")
    number = len(after.recipients)
    missing = ", ".join(map(witness.name_of, after.missing))
    changes.append(
        f"{number} {'recipient' if number == 1 else 'recipients'}, "
        + (f"missing {missing}" if missing else "none missing")
    )
    return ("degraded: " if missing else "") + "; ".join(changes)


def _uris(info: EnvelopeInfo) -> set[str]:
    return {recipient.key_uri for recipient in info.recipients}


# --- descriptions --------------------------------------------------------------------------------


def _as_json(info: EnvelopeInfo) -> dict[str, Any]:
    return {
        "form": info.form,
        "inline": info.inline,
        "suite": info.suite,
        "key_id": info.key_id,
        "size": info.size,
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
        ("form", f"{info.form} with its capsule" if info.inline else info.form),
        ("suite", f"{info.suite} ({_SUITES.get(info.suite, 'unknown')})"),
        ("key id", info.key_id),
        ("size", f"{info.size} bytes"),
    ]
    if info.generation is not None:
        lines.append(("generation", f"{info.generation} (times rewrapped)"))
        lines.append(("opens with", f"{info.threshold} of {len(info.recipients)} recipients"))
        lines.append(("scope", _sentence(info.scope)))
    if info.stored_context is not None:
        lines.append(("stored context", _sentence(info.stored_context)))
    if info.created is not None:
        lines.append(("created", _date(info.created)))
    if info.degraded:
        lines.append(("degraded", f"{len(info.missing)} missing; `kms rewrap` adds what it can"))
    return lines


def _sentence(context: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in context.items()) or "none"


def _algorithm(number: int) -> str:
    return f"{_WRAP_ALGORITHMS.get(number, 'unknown')} (0x{number:04x})"


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):  # it is a number that anybody may have written
        return f"{seconds} seconds after 1970"
