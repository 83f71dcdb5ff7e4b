"""What vectors are made of: pinned randomness, keys, and objects with exactly one thing wrong.

Well-formed objects come from the library.  Malformed ones are put together field by field and then
wrapped, committed to and MACed as usual, so that a reader which forgets the one rule opens them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_core.aead import Keys, bind_context
from kms_core.context import Context
from kms_core.envelope import Shares, seal_message, sign_capsule, start_stream, wrap_context
from kms_core.header import Capsule, Recipient
from kms_core.stream import segment_aad
from kms_core.types import Ciphertext

HPKE_INPUTS = Path(__file__).with_name("hpke.json")

GCM, KWP = 0x0501, 0x0502
DEK = bytes(range(32))
SCOPE = Context({"tenant": "t1"})
CONTEXT = Context({"tenant": "t1", "row": "7"})
PLAINTEXT = b"hello, envelope"
A, B, C = (f"local://vectors/{name}/1" for name in "abc")
SALT, IV, STREAM_SALT = bytes(range(64, 76)), bytes(range(80, 92)), bytes(range(96, 120))
SEGMENT_LOG2 = 12
SEGMENT = 1 << SEGMENT_LOG2


class Pinned:
    """A random source that always draws the same."""

    def __init__(self, label: str, first: Sequence[bytes] = ()) -> None:
        self._label = label
        self._first = list(first)
        self._drawn = 0

    def __call__(self, size: int) -> bytes:
        if self._first:
            drawn = self._first.pop(0)
            assert len(drawn) == size
            return drawn
        self._drawn += 1
        return hashlib.shake_256(f"{self._label} {self._drawn}".encode()).digest(size)


@dataclass(frozen=True)
class Kek:
    """A key that a reader has: the key URI, the algorithm it is for, and its raw bytes."""

    key_uri: str
    key: bytes
    wrap_alg: int = GCM

    def wrap(self, secret: bytes | bytearray, context: Context, label: str = "") -> bytes:
        """The blob for this secret; ``label`` makes another IV."""
        secret = bytes(secret)
        if self.wrap_alg == KWP:
            return keywrap.aes_key_wrap_with_padding(self.key, bytes(bind_context(secret, context)))
        iv = Pinned(f"wrap {self.key_uri} {label}")(12)
        return iv + AESGCM(self.key).encrypt(iv, secret, context.encoded)


def kek(key_uri: str, wrap_alg: int = GCM) -> Kek:
    """The key that belongs to a URI; its first one is 20 21 .. 3f."""
    if key_uri == A:
        return Kek(key_uri, bytes(range(32, 64)), wrap_alg)
    return Kek(key_uri, hashlib.sha256(key_uri.encode()).digest(), wrap_alg)


def wrong(key: Kek) -> Kek:
    """Another key under the same name."""
    return Kek(key.key_uri, hashlib.sha256(key.key).digest(), key.wrap_alg)


def hpke_keks() -> dict[int, tuple[Kek, bytes]]:
    """A private key for each public-key algorithm, and a wrap of ``DEK`` in ``SCOPE`` for it.

    HPKE draws randomness that cannot be pinned, so these were made once and kept.
    """
    kept = json.loads(HPKE_INPUTS.read_text())
    found = {}
    for number, item in kept.items():
        digest = hashlib.sha256(bytes.fromhex(item["public"])).digest()[:16]
        uri = "hpke:" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        found[int(number, 16)] = (
            Kek(uri, bytes.fromhex(item["private"]), int(number, 16)),
            bytes.fromhex(item["blob"]),
        )
    return found


def unchecked(encoded: bytes) -> Context:
    """A context that is not what its bytes should be."""
    context = Context.__new__(Context)
    context._pairs, context._encoded = {}, encoded
    return context


def u16(data: bytes, length: int | None = None) -> bytes:
    """A field behind its length, or behind a wrong one."""
    return (len(data) if length is None else length).to_bytes(2, "big") + data


# --- wraps and capsules --------------------------------------------------------------------------


def wraps(
    keys: Keys,
    keks: Iterable[Kek] = (kek(A),),
    secret: bytes = DEK,
    index: int = 0,
    threshold: int = 1,
) -> list[Recipient]:
    """One recipient for each key, all with the same secret."""
    context = wrap_context(keys.scope, keys.key_id, keys.suite, index, threshold)
    return [Recipient(key.key_uri, key.wrap_alg, key.wrap(secret, context)) for key in keks]


def shares(
    keys: Keys, threshold: int, keks: Mapping[int, Kek], secret: bytes = DEK
) -> list[Recipient]:
    """One share for each key, by share index."""
    parts = Shares.of(secret, threshold, [*keks], Pinned("share"))
    recipients = []
    for index, key in keks.items():
        part, context = parts.bound(keys, index)
        wrap = Ciphertext(key.wrap(part, context), key.key_uri, wrap_alg=key.wrap_alg)
        recipients.append(parts.wrapped(wrap, index).recipient)
    return recipients


def capsule(keys: Keys, recipients: Iterable[Recipient], **fields: Any) -> bytes:
    """A well-formed capsule, as the library writes it."""
    made = Capsule(
        suite=keys.suite,
        threshold=fields.pop("threshold", 1),
        generation=fields.pop("generation", 0),
        commitment=keys.commitment,
        scope=keys.scope,
        recipients=tuple(recipients),
        **fields,
    )
    return sign_capsule(made, keys)


def recipient_bytes(
    recipient: Recipient,
    *,
    reference: bytes | None = None,
    reference_length: int | None = None,
    blob_length: int | None = None,
) -> bytes:
    """A recipient as in K; a changed field may contradict the others."""
    if reference is None:
        reference = recipient.key_uri.encode()
    return b"".join(
        (
            recipient.wrap_alg.to_bytes(2, "big"),
            bytes((recipient.share_index,)),
            u16(reference, reference_length),
            u16(recipient.blob, blob_length),
        )
    )


def extension(number: int, value: bytes = b"", length: int | None = None) -> bytes:
    """An extension as in K."""
    return number.to_bytes(2, "big") + u16(value, length)


@dataclass
class RawCapsule:
    """K field by field; ``build`` adds a valid MAC, whatever the fields say."""

    keys: Keys
    recipients: list[bytes]
    extensions: list[bytes] = field(default_factory=list)
    head: bytes = b"\xc1\x11\x01"
    threshold: int = 1
    total: int | None = None
    generation: bytes = bytes(4)
    commitment: bytes | None = None
    scope: bytes | None = None
    scope_length: int | None = None
    count: int | None = None
    extension_count: int | None = None
    tail: bytes = b""
    mac: bytes | None = None

    def build(self) -> bytes:
        """The bytes."""
        scope = self.keys.scope.encoded if self.scope is None else self.scope
        count = len(self.recipients) if self.count is None else self.count
        extensions = len(self.extensions) if self.extension_count is None else self.extension_count
        body = b"".join(
            (
                self.generation,
                self.keys.commitment if self.commitment is None else self.commitment,
                u16(scope, self.scope_length),
                bytes((count,)),
                *self.recipients,
                bytes((extensions,)),
                *self.extensions,
                self.tail,
            )
        )
        total = 8 + len(body) + 32 if self.total is None else self.total
        unsigned = self.head + bytes((self.threshold,)) + total.to_bytes(4, "big") + body
        return unsigned + (self.keys.capsule_mac(unsigned) if self.mac is None else self.mac)


def raw_capsule(keys: Keys, recipients: Iterable[Recipient], **fields: Any) -> bytes:
    """K with changed fields around these recipients."""
    return RawCapsule(keys, [recipient_bytes(item) for item in recipients], **fields).build()


# --- bodies --------------------------------------------------------------------------------------


def message(
    keys: Keys,
    context: Context = CONTEXT,
    stored: Context | None = None,
    plaintext: bytes = PLAINTEXT,
) -> bytes:
    """M, as the library writes it."""
    return seal_message(keys, plaintext, context, stored, random=Pinned("message", [SALT, IV]))


def raw_message(
    keys: Keys,
    block: bytes = b"",
    *,
    kind: int | None = None,
    context: Context = CONTEXT,
    head: bytes | None = None,
    key_id: bytes | None = None,
) -> bytes:
    """M with a context block that need not be one; kind and head may contradict each other."""
    kind = kind or (0x1A if block else 0x12)
    sealed = keys.one_shot(kind, SALT).encrypt(IV, PLAINTEXT, block + context.encoded)
    head = bytes((0xC1, kind, 1)) if head is None else head
    return head + (keys.key_id if key_id is None else key_id) + SALT + IV + block + sealed


def stream(
    keys: Keys,
    plaintext: bytes = PLAINTEXT,
    context: Context = CONTEXT,
    stored: Context | None = None,
    segment_log2: int = SEGMENT_LOG2,
) -> bytes:
    """S, as the library writes it."""
    sink = io.BytesIO()
    random = Pinned("segment", [STREAM_SALT])
    with start_stream(
        sink, keys, context, stored, segment_log2=segment_log2, random=random
    ) as writer:
        writer.write(plaintext)
    return sink.getvalue()


@dataclass(frozen=True)
class Segment:
    """A segment that says it is number ``index`` of its stream, and whether it is the last."""

    index: int
    final: bool
    chunk: bytes


def raw_stream(
    keys: Keys,
    segments: Iterable[Segment],
    *,
    head: bytes = bytes((0xC1, 0x13, 1, SEGMENT_LOG2)),
    key_id: bytes | None = None,
    block: bytes = b"",
    salt: bytes = STREAM_SALT,
    context: Context = CONTEXT,
) -> bytes:
    """S of these segments, with whatever header, and a commitment to it."""
    header = head + (keys.key_id if key_id is None else key_id) + salt + block
    key, commitment = keys.stream(header, context)
    return header + commitment + b"".join(_segment(key, item, salt) for item in segments)


def _segment(key: Any, segment: Segment, salt: bytes) -> bytes:
    iv = Pinned(f"raw segment {salt.hex()} {segment.index} {segment.final}")(12)
    sealed = bytearray(len(segment.chunk) + 16)
    aad = segment_aad(segment.index, final=segment.final)
    key.encrypt_into(iv, memoryview(segment.chunk), aad, memoryview(sealed))
    return iv + sealed


def chunk(size: int, seed: int = 0) -> bytes:
    """Plaintext of this size."""
    return bytes((seed + 7 * position) & 0xFF for position in range(size))


# --- vectors -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vector:
    """One entry of a vector file; see README.md for the meaning of the fields."""

    name: str
    comment: str
    #: ``envelope``, or ``capsule`` and ``body``, or ``text``.
    inputs: Mapping[str, bytes | str]
    keks: Sequence[Kek]
    context: Context = CONTEXT
    stored_context: Context | None = None
    plaintext: bytes | None = None
    error: str | None = None
    max_unwraps: int = 0
    #: All that another writer needs beside the bytes themselves, which hold every salt and IV.
    dek: bytes | None = None

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        outcome: dict[str, Any] = (
            {"plaintext": (self.plaintext or b"").hex()}
            if self.error is None
            else {"error": self.error}
        )
        stored = {} if self.stored_context is None else {"stored_context": {**self.stored_context}}
        dek = {} if self.dek is None else {"dek": self.dek.hex()}
        return {
            "name": self.name,
            "comment": self.comment,
            **{
                key: value if isinstance(value, str) else value.hex()
                for key, value in self.inputs.items()
            },
            "context": {**self.context},
            **stored,
            "keks": [
                {
                    "key_uri": key.key_uri,
                    "wrap_alg": f"{key.wrap_alg:#06x}",
                    "key": key.key.hex(),
                }
                for key in self.keks
            ],
            **outcome,
            "max_unwraps": self.max_unwraps,
            **dek,
        }
