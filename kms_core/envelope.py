"""Sealing, opening, inspecting and rewrapping envelopes, as pure functions.

Randomness, wrapping and unwrapping come in as arguments: this module knows no provider.  The
order of checks is that of docs/format.md, section 9: format before scope, scope before any key
service, commitment before MAC, MAC before the body.
"""

from __future__ import annotations

import hmac
import io
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import IO, Final, Protocol, Self

from attrs import define, evolve, field, frozen

from kms_core import shamir
from kms_core.aead import DEK_BYTES, Keys, StreamKey, share_check, wipe
from kms_core.context import MAX_CONTEXT_BYTES, Context
from kms_core.errors import (
    FormatError,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
)
from kms_core.header import (
    BODY_KINDS,
    COMMITMENT_BYTES,
    DEFAULT_SEGMENT_LOG2,
    EXT_DROP_IF_UNKNOWN,
    IV_BYTES,
    KIND_CAPSULE,
    KIND_MESSAGE,
    KIND_STREAM,
    MAC_BYTES,
    MAX_CAPSULE_BYTES,
    MAX_GENERATION,
    MAX_PLAINTEXT_BYTES,
    MAX_SEGMENT_LOG2,
    MESSAGE_HEADER_BYTES,
    MIN_CAPSULE_BYTES,
    MIN_SEGMENT_LOG2,
    SALT_BYTES,
    STORES_CONTEXT,
    STREAM_HEADER_BYTES,
    STREAM_SALT_BYTES,
    SUBKEY_PREFIX_BYTES,
    TAG_BYTES,
    Capsule,
    MessageHeader,
    Recipient,
    StreamHeader,
    capsule_length,
    check_prefix,
    parse_capsule,
    parse_message_header,
    parse_stream_header,
)
from kms_core.sessions import Opener
from kms_core.stream import StreamReader, StreamWriter, read_full, write_all
from kms_core.types import Ciphertext

Random = Callable[[int], bytes]
#: Turns unwrapped bytes into keys (``None``: more shares are needed), or raises
#: ``InvalidCiphertext`` for something else (ask another recipient) and ``IntegrityError`` for the
#: right DEK in an altered capsule (stop).
Accept = Callable[[Ciphertext, bytes | bytearray], Keys | None]


class Unwrap(Protocol):
    """Gets at a DEK through its wraps, each with the context it is bound to."""

    def __call__(
        self,
        wraps: Sequence[tuple[Ciphertext, Context]],
        accept: Accept,
        *,
        threshold: int,
        capsule: bytes,
    ) -> Keys:
        """What ``accept`` made of ``threshold`` wraps; ``capsule``: all that they came in."""


#: The capsule of a compact message, by key id; raises if there is none.
FindCapsule = Callable[[bytes], bytes]


class KeyCache(Protocol):
    """Keeps the keys of capsules that were verified (see ``kms_core.opening``)."""

    def find(self, key_id: bytes, capsule: bytes) -> Keys | None:
        """What is kept of the data key with this id, if this capsule (``b""``: none) was good."""

    def unlocked(self, key_id: bytes, capsule: bytes, unlock: Callable[[], Keys]) -> Keys:
        """What ``unlock`` returns, kept from now on."""

    def keep_opener(self, keys: Keys, opener: Opener) -> None:
        """Remember what opened a message."""


#: Room reserved for a missing wrap beside its URI: the largest one known, HPKE with ML-KEM-1024.
WRAP_ROOM: Final = 1728
#: Enough to tell what follows and how long it is.
LEAD_BYTES: Final = 8
_READ_BYTES: Final = 1 << 20
_RECIPIENT_FRAMING: Final = 7


# --- keys and capsules ---------------------------------------------------------------------------


def wrap_context(scope: Context, key_id: bytes, suite: int, index: int = 0, k: int = 1) -> Context:
    """W: the context with which a provider is called for its wrap of this DEK, or of a share."""
    return Context(
        {
            **scope,
            "kms_core:kid": key_id.hex(),
            "kms_core:share": f"{index}/{k}",
            "kms_core:suite": str(suite),
        }
    )


@frozen
class Shares:
    """How a DEK is handed to recipients: whole, or split so that ``threshold`` are needed.

    Its owner wipes it.
    """

    threshold: int
    parts: Mapping[int, bytearray] = field(repr=False)

    @classmethod
    def of(
        cls,
        dek: bytes | bytearray | memoryview,
        threshold: int,
        indexes: Sequence[int],
        random: Random = os.urandom,
    ) -> Self:
        """Shares for these indexes; with threshold 1 all are index 0, the DEK itself."""
        if threshold == 1:
            return cls(1, {0: bytearray(dek)})
        return cls(threshold, shamir.split(dek, threshold, indexes, random))

    def bound(self, keys: Keys, index: int) -> tuple[bytearray, Context]:
        """One share, and the context to wrap it with."""
        context = wrap_context(keys.scope, keys.key_id, keys.suite, index, self.threshold)
        return self.parts[index], context

    def wrapped(self, ciphertext: Ciphertext, index: int) -> Wrapped:
        """The wrap of one share, as a recipient will hold it."""
        check = share_check(self.parts[index]) if self.threshold > 1 else b""
        return Wrapped(ciphertext, index, check)

    def wipe(self) -> None:
        """Zero every share."""
        for part in self.parts.values():
            wipe(part)


@frozen
class Wrapped:
    """A wrap that is to become a recipient."""

    ciphertext: Ciphertext
    share_index: int = 0
    share_check: bytes = b""

    @property
    def recipient(self) -> Recipient:
        """The recipient it becomes."""
        wrap = self.ciphertext
        return Recipient(
            wrap.key_uri, wrap.wrap_alg, bytes(wrap.data), self.share_index, self.share_check
        )


def new_capsule(
    keys: Keys,
    wraps: Sequence[Wrapped],
    missing: Collection[str] = (),
    *,
    threshold: int = 1,
    created: int | None = None,
) -> bytes:
    """K for these wraps, with room for the missing ones; what it returns has been parsed back."""
    recipients = by_key_uri(wraps)
    capsule = Capsule(
        suite=keys.suite,
        threshold=threshold,
        generation=0,
        commitment=keys.commitment,
        scope=keys.scope,
        recipients=tuple(recipients.values()),
        missing=tuple(sorted(set(missing) - recipients.keys())),
        created=created,
    )
    return sign_capsule(_with_room(capsule), keys)


def by_key_uri(wraps: Iterable[Wrapped]) -> dict[str, Recipient]:
    """Recipients by URI: two instances may reach one key, say through two endpoints."""
    return {wrap.ciphertext.key_uri: wrap.recipient for wrap in wraps}


def _with_room(capsule: Capsule, at_least: int = 0) -> Capsule:
    """Padded to ``at_least`` bytes, and so far that every missing wrap can be added in place."""
    if not capsule.missing:
        return capsule.padded_to(at_least) if at_least else capsule
    return capsule.padded_to(at_least, room=sum(map(room_for, capsule.missing)))


def room_for(key_uri: str) -> int:
    """The most bytes that a recipient with this URI is expected to take."""
    return _RECIPIENT_FRAMING + len(key_uri) + WRAP_ROOM


def worst_case(key_uri: str) -> int:
    """The most that a configured recipient takes, present or missing."""
    return room_for(key_uri) + 2 + len(key_uri)


def sign_capsule(capsule: Capsule, keys: Keys) -> bytes:
    """The capsule's bytes with their MAC, parsed back to prove that a reader takes them."""
    unsigned = capsule.unsigned()
    signed = unsigned + keys.capsule_mac(unsigned)
    parse_capsule(signed)
    return signed


def _bound(capsule: Capsule, recipient: Recipient) -> tuple[Ciphertext, Context]:
    context = wrap_context(
        capsule.scope, capsule.key_id, capsule.suite, recipient.share_index, capsule.threshold
    )
    ciphertext = Ciphertext(recipient.blob, recipient.key_uri, wrap_alg=recipient.wrap_alg)
    return ciphertext, context


@define
class Unlocked:
    """The secrets of a capsule, for a rewrap: the DEK, and the shares it came from by index."""

    dek: bytearray = field(factory=lambda: bytearray(DEK_BYTES), repr=False)
    shares: dict[int, bytearray] = field(factory=dict, repr=False)

    def wipe(self) -> None:
        """Zero everything."""
        for secret in (self.dek, *self.shares.values()):
            wipe(secret)


def unlock(capsule_bytes: bytes, unwrap: Unwrap, keep: Unlocked | None = None) -> Keys:
    """Have a capsule unwrapped, and verify shares, commitment and MAC.

    ``keep`` receives the secrets themselves, which only a rewrap needs; its owner wipes it.
    """
    return _unlock(parse_capsule(capsule_bytes), capsule_bytes, unwrap, keep)


def _unlock(
    capsule: Capsule, capsule_bytes: bytes, unwrap: Unwrap, keep: Unlocked | None = None
) -> Keys:
    opened = _Opening(capsule, capsule_bytes, Unlocked() if keep is None else keep)
    try:
        wraps = [_bound(capsule, recipient) for recipient in capsule.recipients]
        return unwrap(wraps, opened.accept, threshold=capsule.threshold, capsule=capsule_bytes)
    finally:
        if keep is None:
            opened.secrets.wipe()


class _Opening:
    """Judges what comes back for one capsule."""

    def __init__(self, capsule: Capsule, capsule_bytes: bytes, secrets: Unlocked) -> None:
        self._capsule = capsule
        self._unsigned, self._mac = capsule_bytes[:-MAC_BYTES], capsule_bytes[-MAC_BYTES:]
        self._recipients = {recipient.key_uri: recipient for recipient in capsule.recipients}
        self.secrets = secrets

    def accept(self, ciphertext: Ciphertext, part: bytes | bytearray) -> Keys | None:
        """The keys, as soon as there are enough good parts."""
        if len(part) != DEK_BYTES:
            raise InvalidCiphertext("the unwrapped key has the wrong length")
        if self._capsule.threshold == 1:
            memoryview(self.secrets.dek)[:] = part  # a slice of the bytearray would be a copy more
        elif not self._add_share(self._recipients[ciphertext.key_uri], part):
            return None
        return self._verified(self.secrets.dek)

    def _add_share(self, recipient: Recipient, share: bytes | bytearray) -> bool:
        """Whether there are enough shares for the DEK now."""
        if not hmac.compare_digest(share_check(share), recipient.share_check):
            raise InvalidCiphertext("the unwrapped share is another one")
        shares = self.secrets.shares
        shares.setdefault(recipient.share_index, bytearray(share))
        if len(shares) < self._capsule.threshold:
            return False
        whole = shamir.interpolate(shares)
        self.secrets.dek[:] = whole
        wipe(whole)
        return True

    def _verified(self, dek: bytearray) -> Keys:
        keys = Keys(dek, self._capsule.scope, self._capsule.suite)
        if not keys.commits_to(self._capsule.commitment):
            if self._capsule.threshold > 1:  # good shares of something else: altered
                raise IntegrityError
            raise InvalidCiphertext("the unwrapped key is another one")
        if not hmac.compare_digest(keys.capsule_mac(self._unsigned), self._mac):
            raise IntegrityError
        return keys


# --- messages ------------------------------------------------------------------------------------


def seal_message(
    keys: Keys,
    plaintext: bytes,
    context: Context,
    stored_context: Context | None = None,
    random: Random = os.urandom,
) -> bytes:
    """M under a fresh subkey: the message without its capsule."""
    _check_stored(stored_context)
    check_size(plaintext)
    kind = KIND_MESSAGE if stored_context is None else KIND_MESSAGE | STORES_CONTEXT
    header = MessageHeader(
        kind, keys.suite, keys.key_id, random(SALT_BYTES), random(IV_BYTES), stored_context, size=0
    )
    aead = keys.one_shot(kind, header.salt)
    return header.encode() + aead.encrypt(header.iv, plaintext, _aad(header, context))


def check_size(plaintext: bytes | bytearray | memoryview) -> None:
    """Raise ``InvalidRequest`` for more than one message holds."""
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise InvalidRequest(
            f"a one-shot message holds at most {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}: "
            "sealing() takes more"
        )


def open_message(keys: Keys, header: MessageHeader, message: bytes, context: Context) -> bytes:
    """The plaintext of M; raises ``IntegrityError`` unless everything authenticates."""
    _check_is_of(header, keys)
    aead = keys.one_shot(header.kind, header.salt)
    return aead.decrypt(header.iv, message[header.size :], _aad(header, context))


def _aad(header: MessageHeader, context: Context) -> bytes:
    if header.stored_context is None:
        return context.encoded
    stored = header.stored_context.encoded
    return len(stored).to_bytes(2, "big") + stored + context.encoded


# --- whole envelopes -----------------------------------------------------------------------------


def split(envelope: bytes) -> tuple[bytes, bytes]:
    """Capsule and body; the capsule of a compact envelope is empty, it lives elsewhere."""
    check_prefix(envelope, BODY_KINDS | {KIND_CAPSULE})
    if envelope[1] != KIND_CAPSULE:
        return b"", envelope
    length = capsule_length(envelope)
    body = envelope[length:]
    check_prefix(body, BODY_KINDS)
    return envelope[:length], body


def open_envelope(
    envelope: bytes,
    context: Context,
    unwrap: Unwrap,
    find_capsule: FindCapsule,
    cache: KeyCache | None = None,
) -> bytes:
    """The plaintext of a whole envelope, or no byte of it."""
    capsule_bytes, body = split(envelope)
    if body[1] & ~STORES_CONTEXT == KIND_STREAM:
        with open_stream(io.BytesIO(envelope), context, unwrap, find_capsule, cache) as stream:
            return stream.read()
    header = parse_message_header(body)
    keys = _keys_of(header, capsule_bytes, context, unwrap, find_capsule, cache)
    if cache is None or header.kind != KIND_MESSAGE:
        return open_message(keys, header, body, context)
    _check_is_of(header, keys)
    opener = Opener(keys, body[:SUBKEY_PREFIX_BYTES], capsule_bytes)
    plaintext = opener.open(header.iv, memoryview(body)[header.size :], context.encoded)
    cache.keep_opener(keys, opener)  # not before: anybody can name a key and a salt
    return plaintext


def open_stream(
    source: IO[bytes],
    context: Context,
    unwrap: Unwrap,
    find_capsule: FindCapsule,
    cache: KeyCache | None = None,
) -> io.BufferedIOBase:
    """A reader of the plaintext, from a source that stands at the start of an envelope."""
    capsule_bytes, head = read_capsule(source)
    check_prefix(head, BODY_KINDS)
    if head[1] & ~STORES_CONTEXT == KIND_MESSAGE:
        message = head + _read_all(source)
        plaintext = open_envelope(capsule_bytes + message, context, unwrap, find_capsule, cache)
        return io.BytesIO(plaintext)
    head += _read_stream_head(source, head)
    header, size = parse_stream_header(head)
    keys = _keys_of(header, capsule_bytes, context, unwrap, find_capsule, cache)
    key, commitment = keys.stream(head[:size], context)
    if not hmac.compare_digest(commitment, head[size:]):
        raise IntegrityError
    return StreamReader(source, key, header.segment_bytes)


def _keys_of(  # noqa: PLR0917
    header: MessageHeader | StreamHeader,
    capsule_bytes: bytes,
    context: Context,
    unwrap: Unwrap,
    find_capsule: FindCapsule,
    cache: KeyCache | None,
) -> Keys:
    """The keys of a body: everything that can be checked without a service is checked first."""
    contexts = (context, header.stored_context or Context())
    known = None if cache is None else cache.find(header.key_id, capsule_bytes)
    if known is not None:
        _check_is_of(header, known)
        check_scope_matches(known.scope, contexts)
        return known
    capsule_bytes = capsule_bytes or find_capsule(header.key_id)
    capsule = parse_capsule(capsule_bytes)
    _check_is_of(header, capsule)
    check_scope_matches(capsule.scope, contexts)
    if cache is None:
        return _unlock(capsule, capsule_bytes, unwrap)
    return _kept(capsule, capsule_bytes, unwrap, cache)


def keys_for_many(
    capsule_bytes: bytes, contexts: Iterable[Context], unwrap: Unwrap, cache: KeyCache
) -> Keys:
    """The keys of messages that have this capsule in common, each with one of these contexts."""
    capsule = parse_capsule(capsule_bytes)
    for context in contexts:
        check_scope_matches(capsule.scope, (context,))
    known = cache.find(capsule.key_id, capsule_bytes)
    return known or _kept(capsule, capsule_bytes, unwrap, cache)


def _kept(capsule: Capsule, capsule_bytes: bytes, unwrap: Unwrap, cache: KeyCache) -> Keys:
    return cache.unlocked(
        capsule.key_id, capsule_bytes, lambda: _unlock(capsule, capsule_bytes, unwrap)
    )


def _check_is_of(header: MessageHeader | StreamHeader, of: Keys | Capsule) -> None:
    """Raise ``IntegrityError`` unless a body names these keys, or this capsule."""
    if header.suite != of.suite or header.key_id != of.key_id:  # no tag covers them
        raise IntegrityError


def read_capsule(source: IO[bytes]) -> tuple[bytes, bytes]:
    """The capsule at the start of a source, and the first bytes of the body."""
    head = _read_exactly(source, LEAD_BYTES)
    check_prefix(head, BODY_KINDS | {KIND_CAPSULE})
    if head[1] != KIND_CAPSULE:
        return b"", head
    total = int.from_bytes(head[4:8], "big")
    if not MIN_CAPSULE_BYTES <= total <= MAX_CAPSULE_BYTES:
        raise FormatError("the capsule's length is out of bounds")
    return head + _read_exactly(source, total - len(head)), _read_exactly(source, LEAD_BYTES)


def _read_stream_head(source: IO[bytes], head: bytes) -> bytes:
    """The rest of a stream's header, with context block and commitment."""
    rest = _read_exactly(source, STREAM_HEADER_BYTES - len(head))
    if head[1] & STORES_CONTEXT:
        length = _read_exactly(source, 2)
        rest += length + _read_exactly(source, int.from_bytes(length, "big"))
    return rest + _read_exactly(source, COMMITMENT_BYTES)


def _read_all(source: IO[bytes]) -> bytes:
    """The rest of a one-shot message; one byte more than it may have is enough to refuse it."""
    limit = MESSAGE_HEADER_BYTES + MAX_CONTEXT_BYTES + MAX_PLAINTEXT_BYTES + TAG_BYTES
    parts, size = [], 0
    while size <= limit and (part := source.read(min(_READ_BYTES, limit + 1 - size))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _read_exactly(source: IO[bytes], size: int) -> bytes:
    buffer = bytearray(size)
    if read_full(source, memoryview(buffer)) < size:
        raise FormatError("the envelope is cut short")
    return bytes(buffer)


def start_stream(
    destination: IO[bytes],
    keys: Keys,
    context: Context,
    stored_context: Context | None = None,
    *,
    segment_log2: int = DEFAULT_SEGMENT_LOG2,
    random: Random = os.urandom,
) -> StreamWriter:
    """Write the header of S, and return the writer of its segments."""
    head, key, header = stream_head(keys, context, stored_context, segment_log2, random)
    write_all(destination, memoryview(head))
    return StreamWriter(destination, key, header.segment_bytes, random)


def stream_head(
    keys: Keys,
    context: Context,
    stored_context: Context | None,
    segment_log2: int,
    random: Random = os.urandom,
) -> tuple[bytes, StreamKey, StreamHeader]:
    """The bytes before the first segment, the key of the segments, and what the header says."""
    _check_stored(stored_context)
    check_segment(segment_log2)
    kind = KIND_STREAM if stored_context is None else KIND_STREAM | STORES_CONTEXT
    salt = random(STREAM_SALT_BYTES)
    header = StreamHeader(kind, keys.suite, segment_log2, keys.key_id, salt, stored_context)
    key, commitment = keys.stream(header.encode(), context)
    return header.encode() + commitment, key, header


def check_segment(segment_log2: int) -> None:
    """Raise ``InvalidRequest`` unless segments may be of this size."""
    if not MIN_SEGMENT_LOG2 <= segment_log2 <= MAX_SEGMENT_LOG2:
        raise InvalidRequest(
            f"a segment is 2^{MIN_SEGMENT_LOG2} to 2^{MAX_SEGMENT_LOG2} bytes, not 2^{segment_log2}"
        )


def _check_stored(stored_context: Context | None) -> None:
    if stored_context is not None and stored_context.reserved:
        raise InvalidRequest("the stored context uses a reserved name")


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
    keys: Keys,
    *,
    added: Sequence[Wrapped],
    removed: Collection[str],
    missing: Collection[str],
) -> bytes:
    """The next generation of a capsule: wraps added, key URIs removed, missing ones recorded.

    A wrap replaces an earlier one under the same key URI.  The length stays the same where the
    padding allows.  Raises ``InvalidRequest`` if too few recipients would be left, or at 2^31
    rewraps.
    """
    capsule = parse_capsule(capsule_bytes)
    if capsule.generation >= MAX_GENERATION:
        raise InvalidRequest("this data key was rewrapped too often: re-encrypt the data")
    new_recipients = by_key_uri(added)
    gone = new_recipients.keys() | set(removed)
    kept = [recipient for recipient in capsule.recipients if recipient.key_uri not in gone]
    recipients = (*kept, *new_recipients.values())
    if len(recipients) < capsule.threshold:
        raise InvalidRequest(
            f"a rewrap must leave at least {capsule.threshold} "
            f"recipient{'s' * (capsule.threshold > 1)}"
        )
    new = evolve(
        capsule,
        generation=capsule.generation + 1,
        recipients=recipients,
        missing=tuple(missing),
        unknown=tuple(item for item in capsule.unknown if not item[0] & EXT_DROP_IF_UNKNOWN),
    )
    return sign_capsule(_with_room(new, len(capsule_bytes)), keys)
