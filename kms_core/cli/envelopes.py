"""``seal`` and ``open``: data of any size, in bounded memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click
from attrs import frozen

from kms_core.cli import files, forms
from kms_core.cli.exits import SpoiltOutput, say
from kms_core.cli.options import (
    Invocation,
    context_option,
    file_argument,
    invocation,
    output_option,
    stored_context_option,
)
from kms_core.cli.progress import Meter
from kms_core.errors import IntegrityError, InvalidRequest
from kms_core.files import is_regular

if TYPE_CHECKING:
    import io
    from collections.abc import Mapping

    from kms_core.cli.clients import Witness
    from kms_core.client import Kms

ONE_SHOT_BYTES: Final = 1 << 20  # what is larger becomes a stream, which is read in bounded memory


@click.command()
@file_argument
@output_option()
@context_option
@stored_context_option
@click.option(
    "--armor",
    is_flag=True,
    help="Write base64url text, for mails and variables; takes up to 64 MiB.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Keep the capsule, which names the recipients, in the configured store instead of in "
    "the envelope.",
)
@invocation
def seal(
    invocation: Invocation,
    file: Path | None,
    output: Path | None,
    context: Mapping[str, str],
    stored_context: Mapping[str, str],
    *,
    armor: bool,
    compact: bool,
) -> None:
    """Encrypt FILE (default: stdin) of any size under the keys of all recipients.

    More than 1 MiB becomes a stream, which takes no more memory however long it is. If a recipient
    cannot be reached it is left out, which is said on stderr and recorded in the envelope;
    `kms rewrap` adds it later.
    """
    from kms_core.cli.clients import connect

    forms.refuse_terminal(output, text=armor)
    with (
        files.reading(file) as source,
        connect(invocation, needs_store=compact) as (kms, witness),
    ):
        sealer = _Sealer(kms, context, stored_context or None, inline=not compact)
        if armor:
            _seal_as_text(sealer, source, output)
        else:
            _seal(sealer, file, source, output)
        _say_degraded(witness, output)


@click.command("open")
@file_argument
@output_option(private=True)
@context_option
@click.option(
    "--identity",
    metavar="PRIVATE_KEY_FILE",
    type=click.Path(path_type=Path),
    help="Open with this recovery key alone: needs no configuration and no key service.",
)
@click.option(
    "--passphrase-env",
    metavar="VAR",
    help="The environment variable that holds the passphrase of --identity. "
    "Default: ask for it on the terminal.",
)
@invocation
def open_(
    invocation: Invocation,
    file: Path | None,
    output: Path | None,
    context: Mapping[str, str],
    *,
    identity: Path | None,
    passphrase_env: str | None,
) -> None:
    """Decrypt FILE (default: stdin), an envelope of any size, as bytes or as text.

    Needs each --context it was sealed with. No byte comes out before it is known to be authentic.
    With -o nothing is written unless all of it is; to stdout a stream is written as it is read,
    so heed the exit code: after a 4, discard what came.
    """
    with (
        files.reading(file) as source,
        _client(invocation, identity, passphrase_env) as (kms, _),
        Meter(files.remaining(source), quiet=files.is_terminal(output)) as meter,
    ):
        sealed = forms.as_bytes(source)
        if file is not None and output is not None and _are_files(sealed, output):
            with files.naming(output):
                kms.open_file(file, output, context, progress=meter)
        else:
            _open(kms, sealed, output, context, meter)


# --- seal ----------------------------------------------------------------------------------------


@frozen
class _Sealer:
    """A client, and what everything it seals here is bound to."""

    kms: Kms
    context: Mapping[str, str]
    stored_context: Mapping[str, str] | None
    inline: bool

    def message(self, plaintext: bytes) -> bytes:
        """A one-shot message."""
        return self.kms.seal(
            plaintext, self.context, stored_context=self.stored_context, inline=self.inline
        )

    def stream(self, target: IO[bytes]) -> io.RawIOBase:
        """A writer of a stream."""
        return self.kms.sealing(
            target, self.context, stored_context=self.stored_context, inline=self.inline
        )

    def file(self, source: Path, target: Path, meter: Meter) -> None:
        """One file into another."""
        self.kms.seal_file(
            source,
            target,
            self.context,
            stored_context=self.stored_context,
            inline=self.inline,
            progress=meter,
        )


def _seal_as_text(sealer: _Sealer, source: IO[bytes], output: Path | None) -> None:
    too_large = InvalidRequest("--armor takes up to 64 MiB: without it, any size is sealed")
    plaintext = files.take(source, limit=forms.MAX_MESSAGE_BYTES, too_large=too_large)
    files.write(output, forms.as_text(sealer.message(plaintext)))


def _seal(
    sealer: _Sealer, file: Path | None, source: io.BufferedReader, output: Path | None
) -> None:
    """As a message if it is small, which stdin does not tell before it has been read."""
    total = files.remaining(source)
    start = source.read(ONE_SHOT_BYTES + 1)
    if len(start) <= ONE_SHOT_BYTES:
        files.write(output, sealer.message(start))
        return
    with Meter(total) as meter:
        if file is not None and output is not None and _are_files(source, output):
            with files.naming(output):
                sealer.file(file, output, meter)
            return
        with files.writing(output) as target, sealer.stream(target) as stream:
            files.put(stream, start)
            meter(len(start))
            files.copy(source, stream, meter)


def _are_files(source: IO[bytes], output: Path) -> bool:
    """Whether both can be worked on in two places at once."""
    return is_regular(source) and files.appears_whole(output)


def _say_degraded(witness: Witness, output: Path | None) -> None:
    if witness.missing:
        without = ", ".join(f"{name} ({witness.why(name)})" for name in witness.missing)
        pronoun = "it" if len(witness.missing) == 1 else "them"
        say(
            f"degraded: sealed without {without}; "
            f"`kms rewrap --repair {output or 'FILE'}` adds {pronoun}"
        )


# --- open ----------------------------------------------------------------------------------------


def _client(
    invocation: Invocation, identity: Path | None, passphrase_env: str | None
) -> AbstractContextManager[tuple[Kms, Witness]]:
    from kms_core.cli.clients import connect, connect_offline

    if identity is not None:
        return connect_offline(identity, passphrase_env)
    if passphrase_env is not None:
        raise click.UsageError("--passphrase-env is for the private key that --identity names")
    return connect(invocation)


def _open(
    kms: Kms,
    sealed: IO[bytes],
    output: Path | None,
    context: Mapping[str, str],
    meter: Meter,
) -> None:
    with (
        kms.opening(sealed, context) as reader,
        files.writing(output, private=True) as target,
    ):
        try:
            files.copy(reader, target, meter)
        except IntegrityError as exc:
            if files.appears_whole(output) or not meter.done:
                raise
            raise SpoiltOutput(meter.done) from exc
