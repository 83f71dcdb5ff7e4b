"""Capsules and message headers: dataclasses to bytes and back (docs/format.md, sections 4 to 7).

One valid encoding per value: whatever parses serialises to the same bytes, and everything else is
a ``FormatError``.  Parsing uses no key and trusts no length before checking it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from attrs import evolve, field, frozen

from kms_core.context import MAX_CONTEXT_BYTES, RESERVED_PREFIX, Context
from kms_core.errors import FormatError, InvalidRequest, UnsupportedVersion
from kms_core.uri import check_key_uri, encode_key_uri

MAGIC: Final = 0xC1  # never valid in UTF-8, and the first byte of no neighbouring format
KIND_CAPSULE: Final = 0x11  # high half: version 1
KIND_MESSAGE: Final = 0x12
KIND_STREAM: Final = 0x13
STORES_CONTEXT: Final = 0x08  # bit of the kind byte: a context block follows the fixed header
BODY_KINDS: Final = frozenset(
    kind | flag for kind in (KIND_MESSAGE, KIND_STREAM) for flag in (0, STORES_CONTEXT)
)
SUITES: Final = frozenset({0x01})  # the reader's allow-list

MAX_CAPSULE_BYTES: Final = 65536  # the most a reader buffers before it knows anything
MIN_CAPSULE_BYTES: Final = 92
MAX_RECIPIENTS: Final = 32  # bounds the work an unauthenticated header can cause
MAX_BLOB_BYTES: Final = 8192  # no service wraps 32 bytes into more
MAX_SCOPE_PAIRS: Final = 16  # the scope travels in clear into services' logs and policies,
MAX_SCOPE_BYTES: Final = 2048  # and must leave an HSM's 8 KiB room for the rest
MAX_PLAINTEXT_BYTES: Final = 1 << 26  # a one-shot message is held in memory whole
MAX_GENERATION: Final = 1 << 31  # after so many rewraps: re-encrypt

KEY_ID_BYTES: Final = 16
SALT_BYTES: Final = 12
IV_BYTES: Final = 12
TAG_BYTES: Final = 16
COMMITMENT_BYTES: Final = 32
MAC_BYTES: Final = 32
SUBKEY_PREFIX_BYTES: Final = 3 + KEY_ID_BYTES + SALT_BYTES
MESSAGE_HEADER_BYTES: Final = SUBKEY_PREFIX_BYTES + IV_BYTES
STREAM_SALT_BYTES: Final = 24
STREAM_HEADER_BYTES: Final = 4 + KEY_ID_BYTES + STREAM_SALT_BYTES
DEFAULT_SEGMENT_LOG2: Final = 18  # 256 KiB: within 2 % of the fastest, and fits a core's cache
MIN_SEGMENT_LOG2: Final = 12
MAX_SEGMENT_LOG2: Final = 22  # 4 MiB: the most a reader ever buffers

#: Where the fields stand that follow a capsule's magic, kind, suite, threshold and length.
_GENERATION_AT: Final = 8
_COMMITMENT_AT: Final = _GENERATION_AT + 4
_SCOPE_AT: Final = _COMMITMENT_AT + COMMITMENT_BYTES

EXT_PADDING: Final = 0x0000
EXT_SHARE_CHECKS: Final = 0x0001
EXT_CREATED: Final = 0x0003
EXT_MISSING: Final = 0x4002
EXT_CRITICAL: Final = 0x8000
EXT_DROP_IF_UNKNOWN: Final = 0x4000
SHARE_CHECK_BYTES: Final = 16
_KNOWN_EXTENSIONS: Final = frozenset({EXT_PADDING, EXT_SHARE_CHECKS, EXT_CREATED, EXT_MISSING})


@frozen
class Recipient:
    """One wrapped copy of the DEK (or of a share of it)."""

    key_uri: str
    wrap_alg: int
    blob: bytes = field(repr=False)
    share_index: int = 0
    #: Tells a good share from a bad one; empty without a threshold.
    share_check: bytes = b""


@frozen
class Capsule:
    """K: everything needed to get at a DEK, except a key."""

    suite: int
    threshold: int
    generation: int
    commitment: bytes
    scope: Context
    recipients: tuple[Recipient, ...]
    missing: tuple[str, ...] = ()
    created: int | None = None
    #: ``None``: no padding extension.
    padding: int | None = None
    #: Unknown non-critical extensions, kept as they were.
    unknown: tuple[tuple[int, bytes], ...] = ()

    @property
    def key_id(self) -> bytes:
        """The name by which messages call for this DEK."""
        return self.commitment[:KEY_ID_BYTES]

    def unsigned(self) -> bytes:
        """The bytes that the MAC covers; raises ``InvalidRequest`` if a limit would be exceeded."""
        check_scope(self.scope)
        self._check_recipients()
        recipients = sorted(self.recipients, key=attrgetter("key_uri"))  # ASCII: as the bytes
        body = b"".join(
            (
                self.generation.to_bytes(4, "big"),
                self.commitment,
                _u16(self.scope.encoded),
                bytes((len(recipients),)),
                *(_recipient_bytes(recipient) for recipient in recipients),
                _extension_bytes(self._extensions(recipients)),
            )
        )
        total = 8 + len(body) + MAC_BYTES
        if total > MAX_CAPSULE_BYTES:
            raise InvalidRequest(f"a capsule takes at most {MAX_CAPSULE_BYTES} bytes, not {total}")
        head = bytes((MAGIC, KIND_CAPSULE, self.suite, self.threshold))
        return head + total.to_bytes(4, "big") + body

    def padded_to(self, total: int, room: int = 0) -> Capsule:
        """The same capsule filled up to ``total`` bytes, as far as the format allows.

        At least ``room`` bytes of that are padding, if any are wanted.
        """
        bare = self if self.padding is None else evolve(self, padding=None)
        size = len(bare.unsigned()) + MAC_BYTES + 4
        padding = min(max(total, size + room) if room else total, MAX_CAPSULE_BYTES) - size
        return evolve(bare, padding=padding) if padding >= 0 else bare

    def _check_recipients(self) -> None:
        count = len(self.recipients)
        if not 1 <= count <= MAX_RECIPIENTS or not 1 <= self.threshold <= count:
            raise InvalidRequest(
                f"a capsule takes 1 to {MAX_RECIPIENTS} recipients and at least as many as its "
                f"threshold; this one has {count} and threshold {self.threshold}"
            )
        for recipient in self.recipients:
            if not 1 <= len(recipient.blob) <= MAX_BLOB_BYTES:
                raise InvalidRequest(f"a wrapped key takes 1 to {MAX_BLOB_BYTES} bytes")
            if not 0 <= recipient.wrap_alg <= 0xFFFF:
                raise InvalidRequest(f"{recipient.wrap_alg} is not the number of an algorithm")

    def _extensions(self, recipients: Sequence[Recipient]) -> list[tuple[int, bytes]]:
        extensions = list(self.unknown)
        if self.padding is not None:
            extensions.append((EXT_PADDING, bytes(self.padding)))
        if self.threshold > 1:
            checks = b"".join(recipient.share_check for recipient in recipients)
            extensions.append((EXT_SHARE_CHECKS, checks))
        if self.created is not None:
            extensions.append((EXT_CREATED, self.created.to_bytes(8, "big")))
        if self.missing:
            uris = sorted({_reference(uri) for uri in self.missing})
            extensions.append((EXT_MISSING, b"".join(map(_u16, uris))))
        return sorted(extensions)


def check_scope(scope: Context) -> None:
    """Raise ``InvalidRequest`` unless these pairs may travel in clear in a capsule."""
    if len(scope) > MAX_SCOPE_PAIRS or len(scope.encoded) > MAX_SCOPE_BYTES:
        raise InvalidRequest(
            f"the context entries named by key_context take at most {MAX_SCOPE_PAIRS} pairs "
            f"and {MAX_SCOPE_BYTES} encoded bytes"
        )
    for key, value in scope.items():
        if not value or key.startswith(RESERVED_PREFIX):
            raise InvalidRequest(f"context entry {key!r} is empty or reserved, and in key_context")


def _u16(data: bytes) -> bytes:
    if len(data) > 0xFFFF:
        raise InvalidRequest(f"{len(data)} bytes do not fit into one field of a capsule")
    return len(data).to_bytes(2, "big") + data


def _reference(key_uri: str) -> bytes:
    try:
        return encode_key_uri(key_uri)
    except FormatError as exc:
        raise InvalidRequest(str(exc)) from exc


def _recipient_bytes(recipient: Recipient) -> bytes:
    return b"".join(
        (
            recipient.wrap_alg.to_bytes(2, "big"),
            bytes((recipient.share_index,)),
            _u16(_reference(recipient.key_uri)),
            _u16(recipient.blob),
        )
    )


def _extension_bytes(extensions: Sequence[tuple[int, bytes]]) -> bytes:
    if len(extensions) > 0xFF:
        raise InvalidRequest(f"a capsule takes at most 255 extensions, not {len(extensions)}")
    parts = [bytes((len(extensions),))]
    parts += (number.to_bytes(2, "big") + _u16(value) for number, value in extensions)
    return b"".join(parts)


# --- reading -------------------------------------------------------------------------------------


class _Cursor:
    """Bounds-checked reading; every overrun is the same ``FormatError``."""

    __slots__ = ("_data", "_end", "_offset")

    def __init__(self, data: bytes, end: int, start: int = 0) -> None:
        self._data = data
        self._offset = start
        self._end = end

    def take(self, size: int) -> bytes:
        start, self._offset = self._offset, self._offset + size
        if self._offset > self._end:
            raise FormatError("the capsule is cut short")
        return self._data[start : self._offset]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def counted(self) -> bytes:
        return self.take(self.number(2))

    @property
    def exhausted(self) -> bool:
        return self._offset == self._end


def capsule_length(data: bytes) -> int:
    """The length of the capsule that ``data`` starts with, or ``FormatError``."""
    if len(data) < MIN_CAPSULE_BYTES:
        raise FormatError("too short for a capsule")
    check_prefix(data, frozenset({KIND_CAPSULE}))
    total = int.from_bytes(data[4:8], "big")
    if not MIN_CAPSULE_BYTES <= total <= MAX_CAPSULE_BYTES:
        raise FormatError("the capsule's length is out of bounds")
    if total > len(data):
        raise FormatError("the capsule is cut short")
    return total


def check_prefix(data: bytes, kinds: frozenset[int]) -> None:
    """Accept the first three bytes of a known kind and suite, or say what they are instead."""
    if len(data) < 3 or data[0] != MAGIC:
        raise FormatError("not a kms_core envelope")
    if data[1] >> 4 != 1:
        raise UnsupportedVersion(f"envelope version {data[1] >> 4} is not supported")
    if data[1] not in kinds:
        raise UnsupportedVersion(f"kind {data[1] & 15:#x} does not belong here")
    if data[2] not in SUITES:
        raise UnsupportedVersion(f"suite {data[2]:#04x} is not accepted")


def parse_capsule(data: bytes) -> Capsule:
    """Parse exactly one capsule, MAC included.  No key is used: nothing is authenticated yet."""
    total = capsule_length(data)
    if total != len(data):
        raise FormatError("the capsule is followed by stray bytes")
    suite, threshold = data[2], data[3]
    generation = int.from_bytes(data[_GENERATION_AT:_COMMITMENT_AT], "big")
    commitment = data[_COMMITMENT_AT:_SCOPE_AT]
    cursor = _Cursor(data, total - MAC_BYTES, _SCOPE_AT)
    scope = _parse_scope(cursor.counted())
    recipients = _parse_recipients(cursor, threshold)
    extensions = _parse_extensions(cursor)
    if not cursor.exhausted:
        raise FormatError("the capsule holds stray bytes")
    checks = _parse_share_checks(extensions.get(EXT_SHARE_CHECKS), threshold, len(recipients))
    return Capsule(
        suite,
        threshold,
        generation,
        commitment,
        scope,
        tuple(map(_with_check, recipients, checks)) if checks else recipients,
        missing=_parse_missing(extensions.get(EXT_MISSING)),
        created=_parse_created(extensions.get(EXT_CREATED)),
        padding=_parse_padding(extensions.get(EXT_PADDING)),
        unknown=tuple(
            (number, value)
            for number, value in extensions.items()
            if number not in _KNOWN_EXTENSIONS
        ),
    )


def _parse_scope(data: bytes) -> Context:
    scope = Context.decode(data)
    try:
        check_scope(scope)
    except InvalidRequest:
        raise FormatError(
            "the capsule's scope is too large, or has an empty or reserved entry"
        ) from None
    return scope


def _parse_recipients(cursor: _Cursor, threshold: int) -> tuple[Recipient, ...]:
    count = cursor.number(1)
    if not 1 <= count <= MAX_RECIPIENTS or not 1 <= threshold <= count:
        raise FormatError("the number of recipients or the threshold is out of bounds")
    recipients = []
    previous = b""
    for _ in range(count):
        wrap_alg, share_index = cursor.number(2), cursor.number(1)
        reference, blob = cursor.counted(), cursor.counted()
        key_uri = check_key_uri(reference)
        if reference <= previous:
            raise FormatError("recipients are repeated or out of order")
        previous = reference
        if not 1 <= len(blob) <= MAX_BLOB_BYTES:
            raise FormatError("a wrapped key's length is out of bounds")
        if (share_index == 0) != (threshold == 1):
            raise FormatError("a share index contradicts the threshold")
        recipients.append(Recipient(key_uri, wrap_alg, blob, share_index))
    if threshold > 1 and len({recipient.share_index for recipient in recipients}) != count:
        raise FormatError("a share index is repeated")
    return tuple(recipients)


def _parse_extensions(cursor: _Cursor) -> dict[int, bytes]:
    extensions: dict[int, bytes] = {}
    previous = -1
    for _ in range(cursor.number(1)):
        number, value = cursor.number(2), cursor.counted()
        if number <= previous:
            raise FormatError("extensions are repeated or out of order")
        if number & EXT_CRITICAL:
            raise UnsupportedVersion(f"critical extension {number:#06x} is not known")
        previous = number
        extensions[number] = value
    return extensions


def _parse_missing(value: bytes | None) -> tuple[str, ...]:
    if value is None:
        return ()
    cursor = _Cursor(value, len(value))
    references: list[bytes] = []
    while not cursor.exhausted:
        references.append(cursor.counted())
    if not references or sorted(set(references)) != references:
        raise FormatError("the list of missing recipients is empty, repeated or out of order")
    return tuple(map(check_key_uri, references))


def _parse_share_checks(value: bytes | None, threshold: int, count: int) -> tuple[bytes, ...]:
    if (value is not None) != (threshold > 1):
        raise FormatError("share checks contradict the threshold")
    if value is None:
        return ()
    if len(value) != count * SHARE_CHECK_BYTES:
        raise FormatError("there is not one share check for each recipient")
    return tuple(
        value[start : start + SHARE_CHECK_BYTES]
        for start in range(0, len(value), SHARE_CHECK_BYTES)
    )


def _with_check(recipient: Recipient, check: bytes) -> Recipient:
    return evolve(recipient, share_check=check)


def _parse_created(value: bytes | None) -> int | None:
    if value is None:
        return None
    if len(value) != 8:
        raise FormatError("the creation time is not eight bytes")
    return int.from_bytes(value, "big")


def _parse_padding(value: bytes | None) -> int | None:
    if value is None:
        return None
    if any(value):
        raise FormatError("the padding is not zero")
    return len(value)


@frozen
class MessageHeader:
    """The head of a one-shot message, as far as it names key and context."""

    kind: int
    suite: int
    key_id: bytes
    salt: bytes
    iv: bytes
    stored_context: Context | None
    #: Where the ciphertext starts.
    size: int

    def encode(self) -> bytes:
        """The header's bytes, context block included."""
        block = b"" if self.stored_context is None else _u16(self.stored_context.encoded)
        return bytes((MAGIC, self.kind, self.suite)) + self.key_id + self.salt + self.iv + block


def parse_message_header(data: bytes) -> MessageHeader:
    """The header of a one-shot message; bounds the whole message's length as well."""
    check_prefix(data, frozenset({KIND_MESSAGE, KIND_MESSAGE | STORES_CONTEXT}))
    size, stored = MESSAGE_HEADER_BYTES, None
    if data[1] & STORES_CONTEXT:
        stored, size = parse_context_block(data, MESSAGE_HEADER_BYTES)
    if not TAG_BYTES <= len(data) - size <= MAX_PLAINTEXT_BYTES + TAG_BYTES:
        raise FormatError("the message is cut short or too long")
    salt_at = 3 + KEY_ID_BYTES
    return MessageHeader(
        kind=data[1],
        suite=data[2],
        key_id=bytes(data[3:salt_at]),
        salt=bytes(data[salt_at:SUBKEY_PREFIX_BYTES]),
        iv=bytes(data[SUBKEY_PREFIX_BYTES:MESSAGE_HEADER_BYTES]),
        stored_context=stored,
        size=size,
    )


@frozen
class StreamHeader:
    """The head of a stream, up to its commitment."""

    kind: int
    suite: int
    segment_log2: int
    key_id: bytes
    salt: bytes
    stored_context: Context | None = None

    @property
    def segment_bytes(self) -> int:
        """The plaintext bytes of every segment but the last."""
        return 1 << self.segment_log2

    def encode(self) -> bytes:
        """The header's bytes, context block included."""
        block = b"" if self.stored_context is None else _u16(self.stored_context.encoded)
        head = bytes((MAGIC, self.kind, self.suite, self.segment_log2))
        return head + self.key_id + self.salt + block


def parse_stream_header(data: bytes) -> tuple[StreamHeader, int]:
    """The header at the start of ``data``, and its length without the commitment."""
    check_prefix(data, frozenset({KIND_STREAM, KIND_STREAM | STORES_CONTEXT}))
    size, stored = STREAM_HEADER_BYTES, None
    if len(data) < size:
        raise FormatError("the stream is cut short")
    if not MIN_SEGMENT_LOG2 <= data[3] <= MAX_SEGMENT_LOG2:
        raise FormatError("the stream's segment size is out of bounds")
    if data[1] & STORES_CONTEXT:
        stored, size = parse_context_block(data, size)
    salt_at = 4 + KEY_ID_BYTES
    header = StreamHeader(
        kind=data[1],
        suite=data[2],
        segment_log2=data[3],
        key_id=bytes(data[4:salt_at]),
        salt=bytes(data[salt_at:STREAM_HEADER_BYTES]),
        stored_context=stored,
    )
    return header, size


def parse_context_block(data: bytes, offset: int) -> tuple[Context, int]:
    """The context stored in clear at ``offset``, and where it ends."""
    start = offset + 2
    length = int.from_bytes(data[offset:start], "big")
    if length > MAX_CONTEXT_BYTES or start + length > len(data):
        raise FormatError("the stored context is cut short or too long")
    stored = Context.decode(bytes(data[start : start + length]))
    if stored.reserved:
        raise FormatError("the stored context uses a reserved name")
    return stored, start + length
