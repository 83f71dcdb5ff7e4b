"""What an envelope says about itself, without any key; and its text form.

Nothing that is shown here is authenticated: that takes a key.
"""

from __future__ import annotations

import base64
import binascii
from typing import Literal

from attrs import frozen

from kms_core.context import Context
from kms_core.errors import FormatError
from kms_core.header import (
    BODY_KINDS,
    KIND_CAPSULE,
    KIND_STREAM,
    MAGIC,
    STORES_CONTEXT,
    Recipient,
    StreamHeader,
    capsule_length,
    check_prefix,
    parse_capsule,
    parse_message_header,
    parse_stream_header,
)
from kms_core.uri import provider_type


@frozen
class RecipientInfo:
    """One recipient as ``inspect`` shows it."""

    key_uri: str
    provider: str
    wrap_alg: int
    share_index: int
    blob_bytes: int


@frozen
class EnvelopeInfo:
    """What an envelope says about itself.  Nothing of it is authenticated without a key."""

    form: Literal["message", "stream", "capsule"]
    inline: bool
    suite: int
    key_id: str
    size: int
    #: The length of the capsule: what follows it is the body.
    capsule_bytes: int = 0
    #: Plaintext bytes in each segment of a stream.
    segment_bytes: int | None = None
    stored_context: Context | None = None
    generation: int | None = None
    threshold: int | None = None
    scope: Context = Context()
    recipients: tuple[RecipientInfo, ...] = ()
    missing: tuple[str, ...] = ()
    created: int | None = None

    @property
    def degraded(self) -> bool:
        """Whether the writer recorded recipients that it could not reach."""
        return bool(self.missing)


def is_sealed(data: bytes | bytearray | memoryview | str) -> bool:
    """Whether ``data`` starts like an envelope (or its base64url text form)."""
    if isinstance(data, str):
        try:
            data = unarmor(data[:8])
        except FormatError:
            return False
    head = bytes(data[:3])
    return len(head) == 3 and head[0] == MAGIC and head[1] in BODY_KINDS | {KIND_CAPSULE}


def armor(envelope: bytes) -> str:
    """The text form: base64url without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(envelope).rstrip(b"=").decode()


def unarmor(text: str) -> bytes:
    """Undo ``armor``; raises ``FormatError`` for anything but its exact output."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise FormatError("not base64url text") from None
    if armor(data) != text:
        raise FormatError("not canonical base64url text")
    return data


def inspect(data: bytes | bytearray | memoryview | str) -> EnvelopeInfo:
    """Describe an envelope without any key; raises ``FormatError`` if it is none."""
    envelope = unarmor(data) if isinstance(data, str) else bytes(data)
    check_prefix(envelope, BODY_KINDS | {KIND_CAPSULE})
    if envelope[1] != KIND_CAPSULE:
        return _describe_body(envelope)
    length = capsule_length(envelope)
    capsule = parse_capsule(envelope[:length])
    body = envelope[length:]
    described = _describe_body(body) if body else None
    return EnvelopeInfo(
        form=described.form if described else "capsule",
        inline=described is not None,
        suite=capsule.suite,
        key_id=capsule.key_id.hex(),
        size=len(envelope),
        capsule_bytes=length,
        stored_context=described.stored_context if described else None,
        segment_bytes=described.segment_bytes if described else None,
        generation=capsule.generation,
        threshold=capsule.threshold,
        scope=capsule.scope,
        recipients=tuple(map(_describe_recipient, capsule.recipients)),
        missing=capsule.missing,
        created=capsule.created,
    )


def _describe_body(body: bytes) -> EnvelopeInfo:
    check_prefix(body, BODY_KINDS)
    is_stream = body[1] & ~STORES_CONTEXT == KIND_STREAM
    header = parse_stream_header(body)[0] if is_stream else parse_message_header(body)
    return EnvelopeInfo(
        form="stream" if is_stream else "message",
        inline=False,
        suite=header.suite,
        key_id=header.key_id.hex(),
        size=len(body),
        stored_context=header.stored_context,
        segment_bytes=header.segment_bytes if isinstance(header, StreamHeader) else None,
    )


def _describe_recipient(recipient: Recipient) -> RecipientInfo:
    return RecipientInfo(
        key_uri=recipient.key_uri,
        provider=provider_type(recipient.key_uri),
        wrap_alg=recipient.wrap_alg,
        share_index=recipient.share_index,
        blob_bytes=len(recipient.blob),
    )
