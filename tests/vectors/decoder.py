"""A second reader of the envelope format, version 1, written from docs/format.md alone.

Shares no code with the library: only the standard library and ``cryptography``.  It is meant to be
read beside the document, so it favours plain steps over speed, and holds everything in memory.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class Format(Exception):
    """Not a well-formed envelope; found without any key."""


class Integrity(Exception):
    """Altered, foreign, or opened with another context."""


class NoRecipient(Exception):
    """Too few of the recipients are under keys that the reader has."""


class BadWrap(Exception):
    """One wrapped key turned out to be wrong; others may do."""


@dataclass
class Keys:
    """The reader's keys: by key URI, the algorithm it is for and its raw bytes (README.md)."""

    by_uri: Mapping[str, tuple[int, bytes]]
    #: How many wrapped keys were tried.
    unwraps: int = field(default=0, init=False)


# --- cursor and maps (section 3) -----------------------------------------------------------------


class Cursor:
    """Takes fields off the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        require(size <= len(self.rest), "cut short")
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def number(self, size: int) -> int:
        """The next big-endian integer."""
        return int.from_bytes(self.take(size), "big")

    def counted(self) -> bytes:
        """The next field, behind its 16-bit length."""
        return self.take(self.number(2))


def require(condition: object, what: str) -> None:
    """Raise ``Format`` unless the condition holds."""
    if not condition:
        raise Format(what)


def read_map(data: bytes) -> dict[str, str]:
    """The map whose canonical encoding this is."""
    require(len(data) <= 8192, "map too long")
    cursor = Cursor(data)
    count = cursor.number(2)
    require(count <= 64, "map with too many pairs")
    pairs = [(cursor.counted(), cursor.counted()) for _ in range(count)]
    require(not cursor.rest, "stray bytes behind a map")
    require(ascending([b"", *(key for key, _ in pairs)]), "map keys not ascending")
    try:
        return {key.decode(): value.decode() for key, value in pairs}
    except UnicodeDecodeError:
        raise Format("map not UTF-8") from None


def write_map(pairs: Mapping[str, str]) -> bytes:
    """The canonical encoding of a map."""
    entries = sorted((key.encode(), value.encode()) for key, value in pairs.items())
    return u16(len(entries)) + b"".join(block(key) + block(value) for key, value in entries)


def u16(number: int) -> bytes:
    """Two bytes, big-endian."""
    return number.to_bytes(2, "big")


def block(data: bytes) -> bytes:
    """A field behind its 16-bit length."""
    return u16(len(data)) + data


def ascending(items: list[bytes]) -> bool:
    """Whether each item is greater than the one before."""
    return all(left < right for left, right in itertools.pairwise(items))


# --- key schedule (section 2) --------------------------------------------------------------------


def expand(key: bytes, label: str, info: bytes) -> bytes:
    """HE of section 2: 64 bytes."""
    data = b"kms_core/v1/" + label.encode() + b"\x00" + info + b"\x01"
    return hmac.digest(key, data, "sha512")


# --- the capsule (section 5) ---------------------------------------------------------------------


@dataclass
class Recipient:
    """One wrapped copy or share."""

    wrap_alg: int
    share_index: int
    key_uri: str
    blob: bytes
    check: bytes = b""


@dataclass
class Capsule:
    """K, parsed."""

    raw: bytes
    suite: int
    threshold: int
    commitment: bytes
    scope_bytes: bytes
    scope: dict[str, str]
    recipients: list[Recipient]


def check_head(data: bytes, kinds: set[int]) -> None:
    """The three bytes that every object starts with."""
    require(len(data) >= 3 and data[0] == 0xC1, "not an envelope")
    require(data[1] in kinds, "version or kind that does not belong here")
    require(data[2] == 1, "suite not accepted")


def split(envelope: bytes) -> tuple[bytes, bytes]:
    """The capsule in front of a body, and the body."""
    check_head(envelope, {0x11})
    require(len(envelope) >= 8, "cut short")
    length = int.from_bytes(envelope[4:8], "big")
    require(92 <= length <= 65536 and length <= len(envelope), "capsule length")
    return envelope[:length], envelope[length:]


def read_capsule(raw: bytes) -> Capsule:
    """Parse a capsule; nothing of it is authenticated yet."""
    require(split(raw)[1] == b"", "stray bytes behind the capsule")
    cursor = Cursor(raw[2:-32])
    suite, threshold = cursor.number(1), cursor.number(1)
    cursor.take(4 + 4)  # the length is checked; the generation matters to key stores only
    commitment, scope_bytes = cursor.take(32), cursor.counted()
    scope = read_map(scope_bytes)
    require(len(scope) <= 16 and len(scope_bytes) <= 2048, "scope too large")
    require(all(scope.values()) and not reserved(scope), "scope with an empty or reserved entry")
    recipients = read_recipients(cursor, threshold)
    read_extensions(cursor, threshold, recipients)
    require(not cursor.rest, "stray bytes in the capsule")
    return Capsule(raw, suite, threshold, commitment, scope_bytes, scope, recipients)


def reserved(pairs: Mapping[str, str]) -> bool:
    """Whether a map uses the names that only W may use."""
    return any(key.startswith("kms_core:") for key in pairs)


def read_recipients(cursor: Cursor, threshold: int) -> list[Recipient]:
    """The recipients of a capsule."""
    count = cursor.number(1)
    require(1 <= threshold <= count <= 32, "number of recipients or threshold")
    recipients = []
    for _ in range(count):
        wrap_alg, share_index = cursor.number(2), cursor.number(1)
        recipients.append(
            Recipient(wrap_alg, share_index, read_uri(cursor.counted()), cursor.counted())
        )
    require(ascending([r.key_uri.encode() for r in recipients]), "recipients not ascending")
    require(all(1 <= len(r.blob) <= 8192 for r in recipients), "length of a wrapped key")
    indexes = [r.share_index for r in recipients]
    if threshold == 1:
        require(not any(indexes), "share index without threshold")
    else:
        require(all(indexes) and len(set(indexes)) == count, "share index zero or repeated")
    return recipients


def read_uri(data: bytes) -> str:
    """A key URI."""
    require(re.fullmatch(rb"[\x21-\x7e]{1,1024}", data), "not a key URI")
    return data.decode()


def read_extensions(cursor: Cursor, threshold: int, recipients: list[Recipient]) -> None:
    """Check the extensions, and give each recipient its share check."""
    found: dict[int, bytes] = {}
    for _ in range(cursor.number(1)):
        number, value = cursor.number(2), cursor.counted()
        require(number > max(found, default=-1), "extensions not ascending")
        require(not number & 0x8000, "unknown critical extension")
        found[number] = value
    require(not any(found.get(0x0000, b"")), "padding not zero")
    require(len(found.get(0x0003, bytes(8))) == 8, "creation time not 8 bytes")
    if 0x4002 in found:
        missing, uris = Cursor(found[0x4002]), []
        while missing.rest:
            uris.append(read_uri(missing.counted()).encode())
        require(uris and ascending(uris), "missing recipients empty or not ascending")
    require((0x0001 in found) == (threshold > 1), "share checks against the threshold")
    checks = Cursor(found.get(0x0001, b""))
    for recipient in recipients if threshold > 1 else ():
        recipient.check = checks.take(16)
    require(not checks.rest, "too many share checks")


# --- from a capsule to the DEK (sections 5 and 9) ------------------------------------------------


def unlock(capsule: Capsule, keys: Keys) -> bytes:
    """The DEK, once commitment and MAC agree with it."""
    usable = [
        recipient
        for recipient in capsule.recipients
        if keys.by_uri.get(recipient.key_uri, (None,))[0] == recipient.wrap_alg
    ]
    if len(usable) < capsule.threshold:
        raise NoRecipient
    dek = (
        one_of(capsule, usable, keys) if capsule.threshold == 1 else some_of(capsule, usable, keys)
    )
    bind = bytes([capsule.suite]) + capsule.scope_bytes
    mac_key = expand(dek, "capsule", bind)[:32]
    mac = hmac.digest(mac_key, capsule.raw[:-32], "sha512")[:32]
    if not hmac.compare_digest(mac, capsule.raw[-32:]):
        raise Integrity
    return dek


def commits(capsule: Capsule, dek: bytes) -> bool:
    """Whether this is the DEK that the capsule names."""
    bind = bytes([capsule.suite]) + capsule.scope_bytes
    return hmac.compare_digest(expand(dek, "commit", bind)[:32], capsule.commitment)


def one_of(capsule: Capsule, usable: list[Recipient], keys: Keys) -> bytes:
    """The DEK from the first recipient that gives it; four wrong ones are enough."""
    for recipient in usable[:4]:
        try:
            dek = unwrap(capsule, recipient, keys)
        except BadWrap:
            continue
        if commits(capsule, dek):
            return dek
    raise Integrity


def some_of(capsule: Capsule, usable: list[Recipient], keys: Keys) -> bytes:
    """The DEK from as many good shares as the threshold asks for."""
    shares: dict[int, bytes] = {}
    bad = 0
    for recipient in usable:
        if len(shares) == capsule.threshold or bad == max(4, capsule.threshold):
            break
        try:
            share = unwrap(capsule, recipient, keys)
        except BadWrap:
            bad += 1
            continue
        if hmac.compare_digest(expand(share, "share", b"")[:16], recipient.check):
            shares[recipient.share_index] = share
        else:
            bad += 1
    if len(shares) == capsule.threshold:
        dek = join(shares)
        if commits(capsule, dek):
            return dek
    raise Integrity


def unwrap(capsule: Capsule, recipient: Recipient, keys: Keys) -> bytes:
    """What one recipient wraps: the DEK, or a share of it."""
    keys.unwraps += 1
    bound = write_map(
        capsule.scope
        | {
            "kms_core:kid": capsule.commitment[:16].hex(),
            "kms_core:share": f"{recipient.share_index}/{capsule.threshold}",
            "kms_core:suite": str(capsule.suite),
        }
    )
    _, key = keys.by_uri[recipient.key_uri]
    try:
        secret = UNWRAP[recipient.wrap_alg](key, recipient.blob, bound)
    except (InvalidTag, keywrap.InvalidUnwrap, ValueError):
        raise BadWrap from None
    if len(secret) != 32:
        raise BadWrap
    return secret


def unwrap_gcm(key: bytes, blob: bytes, bound: bytes) -> bytes:
    """0x0501: IV, ciphertext, tag."""
    return AESGCM(key).decrypt(blob[:12], blob[12:], bound)


def unwrap_kwp(key: bytes, blob: bytes, bound: bytes) -> bytes:
    """0x0502: RFC 5649 around a digest of the context and the secret."""
    opened = keywrap.aes_key_unwrap_with_padding(key, blob)
    if not hmac.compare_digest(opened[:32], hashlib.sha256(bound).digest()):
        raise BadWrap
    return opened[32:]


def unwrap_p256(key: bytes, blob: bytes, bound: bytes) -> bytes:
    """0x0601: the key is the scalar."""
    suite = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    private = ec.derive_private_key(int.from_bytes(key, "big"), ec.SECP256R1())
    return suite.decrypt(blob, private, bound)


def unwrap_mlkem1024_p384(key: bytes, blob: bytes, bound: bytes) -> bytes:
    """0x0602: the key is the ML-KEM seed and the scalar."""
    suite = hpke.Suite(hpke.KEM.MLKEM1024_P384, hpke.KDF.HKDF_SHA384, hpke.AEAD.AES_256_GCM)
    private = hpke.MLKEM1024P384PrivateKey(
        mlkem.MLKEM1024PrivateKey.from_seed_bytes(key[:64]),
        ec.derive_private_key(int.from_bytes(key[64:], "big"), ec.SECP384R1()),
    )
    return suite.decrypt(blob, private, bound)


def unwrap_mlkem768_x25519(key: bytes, blob: bytes, bound: bytes) -> bytes:
    """0x0603: the key is the ML-KEM seed and the X25519 key."""
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    private = hpke.MLKEM768X25519PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(key[:64]),
        x25519.X25519PrivateKey.from_private_bytes(key[64:]),
    )
    return suite.decrypt(blob, private, bound)


UNWRAP: dict[int, Callable[[bytes, bytes, bytes], bytes]] = {
    0x0501: unwrap_gcm,
    0x0502: unwrap_kwp,
    0x0601: unwrap_p256,
    0x0602: unwrap_mlkem1024_p384,
    0x0603: unwrap_mlkem768_x25519,
}


def join(shares: Mapping[int, bytes]) -> bytes:
    """The value at 0 of the polynomial through these shares."""
    secret = bytes(32)
    for index, share in shares.items():
        weight = 1
        for other in shares:
            if other != index:  # other / (other - index), where minus is exclusive or
                weight = times(weight, times(other, inverse(other ^ index)))
        secret = bytes(
            left ^ times(right, weight) for left, right in zip(secret, share, strict=True)
        )
    return secret


def times(left: int, right: int) -> int:
    """The product in GF(2^8) with the polynomial 0x11B."""
    product = 0
    while right:
        product ^= left * (right & 1)
        left = left << 1 ^ 0x11B * (left >> 7)
        right >>= 1
    return product


def inverse(element: int) -> int:
    """Its 254th power."""
    return reduce(times, [element] * 254)


# --- bodies (sections 6 and 7) -------------------------------------------------------------------


@dataclass
class Body:
    """M or S, as far as it can be read without a key."""

    kind: int
    suite: int
    key_id: bytes
    #: Everything before the IV of M, or before the commitment of S; the context block apart.
    fixed: bytes
    iv: bytes
    #: The stored context with its length, as on the wire; empty if there is none.
    context_block: bytes
    stored: dict[str, str]
    rest: bytes


def read_body(data: bytes) -> Body:
    """Parse the head of M or S."""
    check_head(data, {0x12, 0x1A, 0x13, 0x1B})
    is_stream = data[1] & 0x07 == 3
    cursor = Cursor(data)
    fixed = cursor.take(44 if is_stream else 31)
    iv = b"" if is_stream else cursor.take(12)
    context_block, stored = b"", {}
    if data[1] & 0x08:
        context_block = block(cursor.counted())
        stored = read_map(context_block[2:])
        require(not reserved(stored), "stored context with a reserved name")
    if is_stream:
        require(12 <= data[3] <= 22, "segment size")
        require(len(cursor.rest) >= 32, "stream without commitment")
    else:
        require(16 <= len(cursor.rest) <= (1 << 26) + 16, "length of the message")
    key_id = fixed[4:20] if is_stream else fixed[3:19]
    return Body(data[1], data[2], key_id, fixed, iv, context_block, stored, cursor.rest)


def open_message(message_key: bytes, body: Body, context: bytes) -> bytes:
    """The plaintext of M."""
    key = expand(message_key, "oneshot", bytes([body.kind]) + body.fixed[19:])[:32]
    return decrypt(key, body.iv, body.rest, body.context_block + context)


def open_stream(message_key: bytes, body: Body, context: bytes) -> bytes:
    """The plaintext of S, only if all of it is there."""
    derived = expand(message_key, "stream", body.fixed + body.context_block + context)
    key, commitment = derived[:32], derived[32:]
    if not hmac.compare_digest(commitment, body.rest[:32]):
        raise Integrity
    stride = (1 << body.fixed[3]) + 28
    rest = body.rest[32:]
    plaintext = b""
    for index in range(1 << 30):
        segment, rest = rest[:stride], rest[stride:]
        final = len(segment) < stride
        if len(segment) < 28:
            raise Integrity
        where = index.to_bytes(8, "big") + bytes([final])
        plaintext += decrypt(key, segment[:12], segment[12:], where)
        if final:
            return plaintext
    raise Integrity


def decrypt(key: bytes, iv: bytes, sealed: bytes, associated: bytes) -> bytes:
    """AES-256-GCM."""
    try:
        return AESGCM(key).decrypt(iv, sealed, associated)
    except InvalidTag:
        raise Integrity from None


# --- envelopes (sections 4 and 9) ----------------------------------------------------------------


def open_text(text: str, context: Mapping[str, str], keys: Keys) -> bytes:
    """The plaintext of an envelope in its text form."""
    require("=" not in text, "padded base64url")
    padded = text.encode() + b"=" * (-len(text) % 4)
    try:
        envelope = base64.b64decode(padded, altchars=b"-_", validate=True)
    except ValueError:
        raise Format("not base64url") from None
    require(base64.urlsafe_b64encode(envelope) == padded, "not canonical base64url")
    return open_inline(envelope, context, keys)


def open_inline(envelope: bytes, context: Mapping[str, str], keys: Keys) -> bytes:
    """The plaintext of a capsule followed by a message or stream."""
    return open_detached(*split(envelope), context, keys)


def open_detached(capsule: bytes, body: bytes, context: Mapping[str, str], keys: Keys) -> bytes:
    """The plaintext of a message or stream whose capsule was kept elsewhere."""
    k, m = read_capsule(capsule), read_body(body)
    if k.suite != m.suite or k.commitment[:16] != m.key_id:
        raise Integrity
    for name, value in k.scope.items():
        if {pairs[name] for pairs in (context, m.stored) if name in pairs} != {value}:
            raise Integrity
    dek = unlock(k, keys)
    message_key = expand(dek, "message", bytes([k.suite]) + k.scope_bytes)[:32]
    open_body = open_stream if m.kind & 0x07 == 3 else open_message
    return open_body(message_key, m, write_map(context))
