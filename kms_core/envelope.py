"""Sealing, opening, inspecting and rewrapping envelopes, as pure functions.

Randomness, wrapping and unwrapping come in as arguments: this module knows no provider.  The
order of checks is that of docs/format.md, section 9: format before scope, scope before any key
service, commitment before MAC, MAC before the body.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Literal

from attrs import evolve, frozen

from kms_core.aead import DEK_BYTES, Keys
from kms_core.context import Context
from kms_core.errors import (
    FormatError,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
    UnsupportedVersion,
)
from kms_core.header import (
    BODY_KINDS,
    EXT_DROP_IF_UNKNOWN,
    IV_BYTES,
    KIND_CAPSULE,
    KIND_MESSAGE,
    MAC_BYTES,
    MAGIC,
    MAX_GENERATION,
    MAX_PLAINTEXT_BYTES,
    SALT_BYTES,
    STORES_CONTEXT,
    Capsule,
    MessageHeader,
    Recipient,
    capsule_length,
    check_prefix,
    parse_capsule,
    parse_message_header,
)
from kms_core.types import Ciphertext
from kms_core.uri import provider_type

Random = Callable[[int], bytes]
#: Turns unwrapped bytes into keys, or raises: ``InvalidCiphertext`` for another DEK (try the next
#: recipient), ``IntegrityError`` for the right DEK in an altered capsule (stop).
Accept = Callable[[bytes | bytearray], Keys]
#: Gets at a DEK through any of its wraps: ``unwrap(ciphertexts, wrap_context, accept)``.
Unwrap = Callable[[Sequence[Ciphertext], Context, Accept], Keys]

#: Room reserved for a missing wrap beside its URI: the largest one known, HPKE with ML-KEM-1024.
WRAP_ROOM: Final = 1728
_RECIPIENT_FRAMING: Final = 7
_EXTENSION_FRAMING: Final = 4


# --- keys and capsules ---------------------------------------------------------------------------


def wrap_context(scope: Context, key_id: bytes, suite: int, share: str = "0/1") -> Context:
    """W: the context with which providers are called for a wrap of this DEK."""
    return Context(
        {
            **scope,
            "kms_core:kid": key_id.hex(),
            "kms_core:share": share,
            "kms_core:suite": str(suite),
        }
    )


def new_dek(random: Random = os.urandom) -> bytearray:
    """A fresh DEK that the caller must wipe."""
    return bytearray(random(DEK_BYTES))


def new_capsule(
    keys: Keys,
    wraps: Sequence[Ciphertext],
    missing: Collection[str] = (),
    *,
    created: int | None = None,
) -> bytes:
    """K for these wraps, with room for the missing ones; what it returns has been parsed back."""
    # two instances may reach one key, say through two endpoints: it is one recipient
    recipients = {wrap.key_uri: _recipient(wrap) for wrap in wraps}
    missing = sorted(set(missing) - recipients.keys())
    capsule = Capsule(
        suite=keys.suite,
        threshold=1,
        generation=0,
        commitment=keys.commitment,
        scope=keys.scope,
        recipients=tuple(recipients.values()),
        missing=tuple(missing),
        created=created,
    )
    return sign_capsule(_with_room(capsule), keys)


def _with_room(capsule: Capsule, at_least: int = 0) -> Capsule:
    """Padded to ``at_least`` bytes, and so far that every missing wrap can be added in place."""
    if not capsule.missing:
        return capsule.padded_to(at_least)
    room = sum(room_for(uri) for uri in capsule.missing)
    bare = evolve(capsule, padding=None)
    total = len(bare.unsigned()) + MAC_BYTES + _EXTENSION_FRAMING + room
    return bare.padded_to(max(total, at_least))


def room_for(key_uri: str) -> int:
    """The most bytes that a recipient with this URI is expected to take."""
    return _RECIPIENT_FRAMING + len(key_uri) + WRAP_ROOM


def sign_capsule(capsule: Capsule, keys: Keys) -> bytes:
    """The capsule's bytes with their MAC, parsed back to prove that a reader takes them."""
    unsigned = capsule.unsigned()
    signed = unsigned + keys.capsule_mac(unsigned)
    parse_capsule(signed)
    return signed


def _recipient(wrap: Ciphertext) -> Recipient:
    return Recipient(wrap.key_uri, wrap.wrap_alg, bytes(wrap.data))


def _ciphertext(recipient: Recipient) -> Ciphertext:
    return Ciphertext(recipient.blob, recipient.key_uri, wrap_alg=recipient.wrap_alg)


def unlock(capsule_bytes: bytes, unwrap: Unwrap, keep_dek: bytearray | None = None) -> Keys:
    """Have a capsule unwrapped, and verify commitment and MAC.

    ``keep_dek`` receives the DEK itself, which only a rewrap needs; its owner wipes it.
    """
    capsule = parse_capsule(capsule_bytes)
    if capsule.threshold > 1:
        raise UnsupportedVersion("envelopes with a threshold are not supported by this version")
    unsigned, mac = capsule_bytes[:-MAC_BYTES], capsule_bytes[-MAC_BYTES:]

    def accept(dek: bytes | bytearray) -> Keys:
        if len(dek) != DEK_BYTES:
            raise InvalidCiphertext("the unwrapped key has the wrong length")
        keys = Keys(dek, capsule.scope, capsule.suite)
        if not keys.commits_to(capsule.commitment):
            raise InvalidCiphertext("the unwrapped key is another one")
        if not hmac.compare_digest(keys.capsule_mac(unsigned), mac):
            raise IntegrityError
        if keep_dek is not None:
            keep_dek[:] = dek
        return keys

    context = wrap_context(capsule.scope, capsule.key_id, capsule.suite)
    return unwrap(list(map(_ciphertext, capsule.recipients)), context, accept)


# --- messages ------------------------------------------------------------------------------------


def seal_message(
    keys: Keys,
    plaintext: bytes,
    context: Context,
    stored_context: Context | None = None,
    random: Random = os.urandom,
) -> bytes:
    """M under a fresh subkey: the message without its capsule."""
    if stored_context is not None and stored_context.reserved:
        raise InvalidRequest("the stored context uses a reserved name")
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise InvalidRequest(
            f"a one-shot message holds at most {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}"
        )
    kind = KIND_MESSAGE if stored_context is None else KIND_MESSAGE | STORES_CONTEXT
    header = MessageHeader(
        kind, keys.suite, keys.key_id, random(SALT_BYTES), random(IV_BYTES), stored_context, size=0
    )
    aead = keys.one_shot(kind, header.salt)
    return header.encode() + aead.encrypt(header.iv, plaintext, _aad(header, context))


def open_message(keys: Keys, header: MessageHeader, message: bytes, context: Context) -> bytes:
    """The plaintext of M; raises ``IntegrityError`` unless everything authenticates."""
    if header.suite != keys.suite or header.key_id != keys.key_id:  # no tag covers them
        raise IntegrityError
    aead = keys.one_shot(header.kind, header.salt)
    return aead.decrypt(header.iv, message[header.size :], _aad(header, context))


def _aad(header: MessageHeader, context: Context) -> bytes:
    if header.stored_context is None:
        return context.encoded
    stored = header.stored_context.encoded
    return len(stored).to_bytes(2, "big") + stored + context.encoded


# --- whole envelopes -----------------------------------------------------------------------------


def split(envelope: bytes) -> tuple[bytes, bytes]:
    """Capsule and body of an inline envelope."""
    length = capsule_length(envelope)
    body = envelope[length:]
    check_prefix(body, BODY_KINDS)
    return envelope[:length], body


def open_envelope(envelope: bytes, context: Context, unwrap: Unwrap) -> bytes:
    """The plaintext of an inline one-shot envelope, or no byte of it."""
    capsule_bytes, message = split(envelope)
    header = parse_message_header(message)
    capsule = parse_capsule(capsule_bytes)
    if header.suite != capsule.suite or header.key_id != capsule.key_id:
        raise IntegrityError
    check_scope_matches(capsule.scope, (context, header.stored_context or Context()))
    keys = unlock(capsule_bytes, unwrap)
    return open_message(keys, header, message, context)


def check_scope_matches(scope: Context, contexts: Iterable[Mapping[str, str]]) -> None:
    """Raise ``IntegrityError`` unless every scope pair stands in the effective context.

    Before any key service is asked, so that no request of one tenant unwraps under another's scope.
    """
    effective = [context for context in contexts if context]
    for key, value in scope.items():
        found = {context[key] for context in effective if key in context}
        if found != {value}:
            raise IntegrityError


def rewrap_capsule(
    capsule_bytes: bytes,
    capsule: Capsule,
    keys: Keys,
    *,
    added: Sequence[Ciphertext],
    removed: Collection[str],
    missing: Collection[str],
) -> bytes:
    """The next generation of a capsule: wraps added, key URIs removed, missing ones recorded.

    A wrap replaces an earlier one under the same key URI.  The length stays the same where the
    padding allows.  Raises ``InvalidRequest`` if no recipient would be left, or at 2^31 rewraps.
    """
    if capsule.threshold > 1:
        raise UnsupportedVersion("envelopes with a threshold are not supported by this version")
    if capsule.generation >= MAX_GENERATION:
        raise InvalidRequest("this data key was rewrapped too often: re-encrypt the data")
    replaced = {wrap.key_uri for wrap in added} | set(removed)
    kept = [recipient for recipient in capsule.recipients if recipient.key_uri not in replaced]
    recipients = (*kept, *{wrap.key_uri: _recipient(wrap) for wrap in added}.values())
    if not recipients:
        raise InvalidRequest("a rewrap must leave at least one recipient")
    new = evolve(
        capsule,
        generation=capsule.generation + 1,
        recipients=recipients,
        missing=tuple(missing),
        unknown=tuple(item for item in capsule.unknown if not item[0] & EXT_DROP_IF_UNKNOWN),
    )
    return sign_capsule(_with_room(new, len(capsule_bytes)), keys)


# --- without a key -------------------------------------------------------------------------------


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
        generation=capsule.generation,
        threshold=capsule.threshold,
        scope=capsule.scope,
        recipients=tuple(map(_describe_recipient, capsule.recipients)),
        missing=capsule.missing,
        created=capsule.created,
    )


def _describe_body(body: bytes) -> EnvelopeInfo:
    check_prefix(body, BODY_KINDS)
    header = parse_message_header(body)
    return EnvelopeInfo(
        form="message",
        inline=False,
        suite=header.suite,
        key_id=header.key_id.hex(),
        size=len(body),
        stored_context=header.stored_context,
    )


def _describe_recipient(recipient: Recipient) -> RecipientInfo:
    return RecipientInfo(
        key_uri=recipient.key_uri,
        provider=provider_type(recipient.key_uri),
        wrap_alg=recipient.wrap_alg,
        share_index=recipient.share_index,
        blob_bytes=len(recipient.blob),
    )
