"""The two forms in which an envelope comes in: bytes of any size, or one line of base64url text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Final

import click

from kms_core.cli import files
from kms_core.errors import FormatError

#: The largest one-shot message, which alone has a text form.
MAX_MESSAGE_BYTES: Final = 64 << 20
#: Such a message as text, with room for the largest capsule and context.
MAX_TEXT_BYTES: Final = 96 << 20
#: Holds the largest capsule and the largest header behind it: all that is not the body.
HEAD_BYTES: Final = 1 << 17
_MAGIC: Final = b"\xc1"  # never the first byte of text


def refuse_terminal(output: Path | None, *, text: bool) -> None:
    """Raise ``UsageError`` rather than fill a person's screen with an envelope's bytes."""
    if not text and files.is_terminal(output):
        raise click.UsageError("an envelope is binary: write it with -o FILE, or use --armor")


def is_text(source: io.BufferedReader) -> bool:
    """Whether what comes is not an envelope's bytes, so that it can only be the text form."""
    return source.peek(1)[:1] != _MAGIC


def as_bytes(source: io.BufferedReader) -> IO[bytes]:
    """The envelope's bytes: ``source`` itself, or what the text in it stands for."""
    return io.BytesIO(decode(read_text(source))) if is_text(source) else source


def read_text(source: IO[bytes]) -> bytes:
    """A text form as it is; raises ``FormatError`` for more than the largest takes."""
    too_large = FormatError("the input is no envelope, and too large to be the text form of one")
    return files.take(source, limit=MAX_TEXT_BYTES, too_large=too_large)


def decode(text: bytes) -> bytes:
    """Undo ``as_text``, with or without a line end."""
    from kms_core.inspection import unarmor

    try:
        return unarmor(text.decode("ascii").rstrip("\r\n"))
    except UnicodeDecodeError:
        raise FormatError("the input is neither an envelope nor the text form of one") from None


def as_text(envelope: bytes) -> bytes:
    """The text form, as a line."""
    from kms_core.inspection import armor

    return f"{armor(envelope)}\n".encode("ascii")
