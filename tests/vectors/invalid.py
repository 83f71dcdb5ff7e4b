"""Vectors that do not open, each for one reason.

``format``: found without any key, so nothing may be unwrapped.  ``integrity`` with
``max_unwraps`` 0: found before any key is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import evolve

from kms_core.aead import Keys
from kms_core.context import MAX_CONTEXT_BYTES, Context
from kms_core.header import Recipient
from kms_core.inspection import armor
from tests.vectors.forge import (
    CONTEXT,
    DEK,
    GCM,
    IV,
    KWP,
    PLAINTEXT,
    SCOPE,
    SEGMENT,
    SEGMENT_LOG2,
    A,
    B,
    C,
    Kek,
    Pinned,
    RawCapsule,
    Segment,
    Vector,
    capsule,
    chunk,
    extension,
    hpke_keks,
    kek,
    message,
    raw_capsule,
    raw_message,
    raw_stream,
    recipient_bytes,
    shares,
    stream,
    u16,
    unchecked,
    wraps,
    wrong,
)

KEYS = Keys(DEK, SCOPE)
OTHER_DEK = bytes(range(128, 160))
OTHER_KEYS = Keys(OTHER_DEK, SCOPE)
LOCAL = kek(A)
THREE = (LOCAL, kek(B), kek(C))
GOOD = capsule(KEYS, wraps(KEYS))
M = message(KEYS)
S = stream(KEYS, chunk(2 * SEGMENT + 100))
S_HEADER = 76
STRIDE = SEGMENT + 28


def fails(
    name: str,
    comment: str,
    envelope: bytes,
    error: str = "format",
    keks: Sequence[Kek] = (kek(A),),
    *,
    context: Context = CONTEXT,
    max_unwraps: int = 0,
) -> Vector:
    """A vector that does not open."""
    return Vector(
        name,
        comment,
        {"envelope": envelope},
        keks,
        context,
        error=error,
        max_unwraps=max_unwraps,
    )


def altered(data: bytes, at: int, new: bytes) -> bytes:
    """Bytes overwritten at a place, from the end if it is negative."""
    at %= len(data)
    return data[:at] + new + data[at + len(new) :]


def flipped(data: bytes, at: int) -> bytes:
    """The lowest bit of one byte changed."""
    return altered(data, at, bytes((data[at] ^ 1,)))


# --- first bytes (section 4) ---------------------------------------------------------------------


def first_bytes() -> Iterator[Vector]:
    """Magic byte, version, kind and suite, of K and of what follows it."""
    whole = GOOD + M
    for size in (0, 1, 2, 3, 7, 8, 91, len(GOOD) - 1):
        yield fails(f"cut-after-{size}", "Cut within the capsule.", whole[:size])
    for byte in (0x00, 0x01, 0x41, 0xC0, 0x7B):
        yield fails(
            f"magic-{byte:#04x}", "The first byte is 0xc1.", altered(whole, 0, bytes((byte,)))
        )
    for byte in (0x01, 0x21, 0xF1):
        yield fails(
            f"version-{byte >> 4}",
            "There is version 1 only.",
            raw_capsule(KEYS, wraps(KEYS), head=bytes((0xC1, byte, 1))) + M,
        )
    for byte in (0x10, 0x14, 0x17, 0x18, 0x19, 0x1C, 0x1F):
        yield fails(
            f"kind-{byte & 15:#03x}-in-front",
            "No such kind, or a capsule with the bit for a stored context.",
            raw_capsule(KEYS, wraps(KEYS), head=bytes((0xC1, byte, 1))) + M,
        )
    for suite in (0x00, 0x02, 0x03, 0x7F, 0x80, 0xFF):
        keys = Keys(DEK, SCOPE, suite)
        body = raw_message(keys, head=bytes((0xC1, 0x12, suite)))
        yield fails(
            f"suite-{suite:#04x}",
            "Invalid, reserved, unassigned or private.",
            raw_capsule(keys, wraps(keys), head=bytes((0xC1, 0x11, suite))) + body,
        )
    yield from behind_the_capsule()


def behind_the_capsule() -> Iterator[Vector]:
    """What stands where M or S should be."""
    yield fails("body-absent", "A capsule alone is no envelope.", GOOD)
    for size in (1, 2):
        yield fails(f"body-of-{size}-bytes", "Cut within the first three bytes.", GOOD + M[:size])
    yield fails("body-is-a-capsule", "A capsule, and another one.", GOOD + GOOD)
    yield fails("body-magic", "The body's first byte is 0xc1 too.", GOOD + altered(M, 0, b"\xc2"))
    for byte in (0x02, 0x22, 0x10, 0x14, 0x18, 0x19, 0x1C, 0x1F):
        yield fails(
            f"body-version-or-kind-{byte:#04x}",
            "No such version or kind.",
            GOOD + raw_message(KEYS, kind=0x12, head=bytes((0xC1, byte, 1))),
        )
    for suite in (0x00, 0x02, 0x80):
        yield fails(
            f"body-suite-{suite:#04x}",
            "Not accepted.",
            GOOD + raw_message(KEYS, head=bytes((0xC1, 0x12, suite))),
        )


# --- text form (section 4) -----------------------------------------------------------------------


def texts() -> Iterator[Vector]:
    """Anything but base64url without padding, in its one spelling."""
    text = armor(GOOD + message(KEYS, plaintext=b"17 characters...."))
    assert len(text) % 4 == 2
    standard = text.replace("-", "+").replace("_", "/")
    assert standard != text
    for name, comment, changed in (
        ("padded", "No padding.", text + "=="),
        ("line-break", "No line breaks.", text[:64] + "\n" + text[64:]),
        ("trailing-line-break", "Not even at the end.", text + "\n"),
        ("standard-alphabet", "Not the alphabet with + and /.", standard),
        ("impossible-length", "4n + 1 characters are no base64.", text + "AAA"),
        ("stray-bits", "The unused bits of the last character are zero.", text[:-1] + "B"),
        ("not-ascii", "A letter that looks like one.", "\u0410" + text[1:]),
    ):
        yield Vector(f"text-{name}", comment, {"text": changed}, [kek(A)], CONTEXT, error="format")


# --- maps (section 3) ----------------------------------------------------------------------------


def pair(key: bytes, value: bytes = b"v") -> bytes:
    """An entry of a map."""
    return u16(key) + u16(value)


def malformed_maps() -> Iterator[tuple[str, str, bytes]]:
    """What is not the canonical encoding of any map."""
    tenant = pair(b"tenant", b"t1")
    yield "empty", "Not even a count.", b""
    yield "half-a-count", "One byte.", b"\x00"
    yield "count-too-large", "Says two pairs, holds one.", b"\x00\x02" + tenant
    yield "count-too-small", "Says one pair, holds two.", b"\x00\x01" + tenant + pair(b"z")
    yield "stray-byte", "A byte behind the last pair.", b"\x00\x01" + tenant + b"\x00"
    yield "key-cut", "A key longer than the map.", b"\x00\x01\x00\x10tenant"
    yield "value-cut", "A value longer than the map.", b"\x00\x01" + u16(b"tenant") + b"\x00\x03t1"
    yield "value-absent", "A key and no value.", b"\x00\x01" + u16(b"tenant")
    yield "key-empty", "An empty key.", b"\x00\x02" + pair(b"") + tenant
    yield "key-repeated", "One key twice.", b"\x00\x02" + tenant + tenant
    yield "descending", "Keys in the wrong order.", b"\x00\x02" + tenant + pair(b"a")
    yield (
        "utf-16-order",
        "Sorted by UTF-16 code units rather than UTF-8 bytes.",
        b"\x00\x03" + tenant + pair("\U00010000".encode()) + pair("\ufffd".encode()),
    )
    yield (
        "length-before-order",
        "Sorted by length before content.",
        b"\x00\x03" + pair(b"a") + pair(b"u") + tenant,
    )
    for name, comment, text in (
        ("stray-continuation", "A continuation byte on its own.", b"\x80"),
        ("cut-sequence", "The first byte of two.", b"\xc3"),
        ("overlong", "U+0000 in two bytes.", b"\xc0\x80"),
        ("surrogate", "A surrogate is no character.", b"\xed\xa0\x80"),
        ("beyond-unicode", "U+110000.", b"\xf4\x90\x80\x80"),
    ):
        yield f"key-{name}", comment, b"\x00\x02" + tenant + pair(b"u" + text)
        yield f"value-{name}", comment, b"\x00\x02" + tenant + pair(b"u", text)


def maps() -> Iterator[Vector]:
    """Malformed maps as stored contexts of M and S, and as scopes."""
    for name, comment, encoded in (*malformed_maps(), *malformed_contexts()):
        block = u16(encoded)
        yield fails(f"stored-{name}", comment, GOOD + raw_message(KEYS, block))
    for name, block in malformed_blocks():
        yield fails(
            f"stored-block-{name}", "The block and its length disagree.", GOOD + raw_block(block)
        )
    for name, comment, encoded in list(malformed_maps())[::4]:
        head = bytes((0xC1, 0x1B, 1, SEGMENT_LOG2))
        whole = raw_stream(KEYS, [last(0)], head=head, block=u16(encoded))
        yield fails(f"stream-stored-{name}", comment, GOOD + whole)
    for name, comment, encoded in (*malformed_maps(), *malformed_scopes()):
        keys = Keys(DEK, unchecked(encoded))
        k = raw_capsule(keys, wraps(KEYS), scope=encoded)
        yield fails(f"scope-{name}", comment, k + message(keys))


def raw_block(block: bytes) -> bytes:
    """M whose context block is broken, with enough behind it for a tag."""
    return b"\xc1\x1a\x01" + KEYS.key_id + bytes(12) + IV + block


def malformed_blocks() -> Iterator[tuple[str, bytes]]:
    """Context blocks whose length is wrong."""
    yield "absent", b""
    yield "half-a-length", b"\x00"
    yield "longer-than-the-message", b"\xff\xff" + SCOPE.encoded + bytes(32)
    yield "leaves-no-tag", u16(SCOPE.encoded) + bytes(15)


def malformed_contexts() -> Iterator[tuple[str, str, bytes]]:
    """Maps that are no stored context."""
    pairs = b"".join(pair(b"k%02d" % number) for number in range(64))
    yield "65-pairs", "One pair too many.", b"\x00\x41" + pairs + pair(b"tenant", b"t1")
    value = bytes(MAX_CONTEXT_BYTES - 2 - len(pair(b"long", b"")) + 1)
    yield "8193-bytes", "One byte too long.", b"\x00\x01" + pair(b"long", value)
    for name in (b"kms_core:kid", b"kms_core:", b"kms_core:x"):
        label = name.decode().replace(":", "-")
        yield f"reserved-{label}", "Only W has such names.", b"\x00\x01" + pair(name)


def malformed_scopes() -> Iterator[tuple[str, str, bytes]]:
    """Maps that are no scope."""
    pairs = b"".join(pair(b"k%02d" % number) for number in range(17))
    yield "17-pairs", "One pair too many.", b"\x00\x11" + pairs
    value = bytes(2048 - 2 - len(pair(b"long", b"")) + 1)
    yield "2049-bytes", "One byte too long.", b"\x00\x01" + pair(b"long", value)
    yield "value-empty", "A value of a scope is not empty.", b"\x00\x01" + pair(b"a", b"")
    yield "reserved", "Only W has such names.", b"\x00\x01" + pair(b"kms_core:kid")


# --- the capsule (section 5) ---------------------------------------------------------------------


def beside() -> Iterator[Vector]:
    """Capsules and bodies that were kept apart."""

    def of(name: str, comment: str, k: bytes, body: bytes) -> Vector:
        inputs = {"capsule": k, "body": body}
        return Vector(f"beside-{name}", comment, inputs, [LOCAL], CONTEXT, error="format")

    yield of("capsule-longer", "A byte behind the capsule's MAC.", GOOD + b"\x00", M)
    yield of("capsule-with-a-body", "A whole envelope is no capsule.", GOOD + M, M)
    yield of("capsule-cut", "The last byte is missing.", GOOD[:-1], M)
    yield of("capsule-is-a-message", "A message is no capsule.", M, M)
    yield of("capsule-is-a-stream", "A stream is no capsule.", S[:200], S)
    yield of("capsule-empty", "Nothing is no capsule.", b"", M)


def capsules() -> Iterator[Vector]:
    """Lengths, counts and threshold of K."""

    def of(name: str, comment: str, **fields: Any) -> Vector:
        recipients = fields.pop("recipients", None) or [*map(recipient_bytes, wraps(KEYS, THREE))]
        return fails(name, comment, RawCapsule(KEYS, recipients, **fields).build() + M)

    size = len(RawCapsule(KEYS, [*map(recipient_bytes, wraps(KEYS, THREE))]).build())
    for total in (0, 91, 65537, 0xFFFFFFFF):
        yield of(f"total-length-{total}", "Out of bounds.", total=total)
    yield of("total-length-short", "Ends within its own MAC.", total=size - 1)
    yield of("total-length-long", "Takes in a byte of the body.", total=size + 1)
    yield of("total-length-beyond", "Longer than everything there is.", total=size + len(M) + 1)
    smallest = Recipient("x", 1, b"?")
    keys = Keys(DEK, Context())
    yield fails(
        "total-length-is-91",
        "One recipient with a key URI and a wrapped key of one byte each, and no scope: too small.",
        raw_capsule(keys, [smallest]) + message(keys),
        keks=[],
    )
    room = 65537 - size - 4
    yield of("total-length-is-65537", "Padded too far.", extensions=[extension(0, bytes(room))])
    yield of("tail", "A byte between extensions and MAC.", tail=b"\x00")
    yield of("mac-absent", "The MAC is missing.", mac=b"", total=size - 32)
    for threshold in (0, 4, 255):
        yield of(f"threshold-{threshold}-of-3", "Out of bounds.", threshold=threshold)
    indexed = [
        recipient_bytes(evolve(item, share_index=index))
        for index, item in enumerate(wraps(KEYS, THREE), 1)
    ]
    yield of("threshold-0-with-indexes", "Out of bounds.", threshold=0, recipients=indexed)
    yield of("recipients-none", "No recipient at all.", recipients=[b""], count=0)
    yield of("recipients-counted-short", "Says two, holds three.", count=2)
    yield of("recipients-counted-long", "Says four, holds three.", count=4)
    many = [kek(f"local://vectors/{number:02}/1") for number in range(33)]
    yield fails(
        "recipients-33", "One too many.", raw_capsule(KEYS, wraps(KEYS, many)) + M, keks=many[:1]
    )
    yield of("scope-length-short", "Two bytes less than the scope has.", scope_length=12)
    yield of("scope-length-long", "Two bytes more than the scope has.", scope_length=16)
    yield of("scope-length-beyond", "Longer than the capsule.", scope_length=0xFFFF)
    yield of("extensions-counted-long", "Says one, holds none.", extension_count=1)
    yield of(
        "extensions-counted-short",
        "Says none, holds one.",
        extension_count=0,
        extensions=[extension(2)],
    )


def recipients() -> Iterator[Vector]:
    """References, blobs and indexes of recipients."""
    a, b, c = wraps(KEYS, THREE)

    def of(name: str, comment: str, *items: bytes, count: int | None = None) -> Vector:
        return fails(name, comment, RawCapsule(KEYS, list(items), count=count).build() + M)

    first = recipient_bytes(a)
    for name, comment, reference in (
        ("empty", "An empty key URI.", b""),
        ("too-long", "A key URI of 1025 bytes.", b"x" * 1025),
        ("space", "A space is not visible.", b"local:// b"),
        ("delete", "Neither is 0x7f.", b"local://\x7f"),
        ("control", "Nor a line break.", b"local://\n"),
        ("nul", "Nor a zero byte.", b"local://\x00"),
        ("not-ascii", "UTF-8 is not ASCII.", "local://\u00e9".encode()),
    ):
        items = sorted(
            [(a.key_uri.encode(), first), (reference, recipient_bytes(b, reference=reference))]
        )
        yield of(f"reference-{name}", comment, *(item for _, item in items))
    yield of(
        "reference-beyond",
        "A key URI longer than the capsule.",
        first,
        recipient_bytes(b, reference_length=0xFFFF),
    )
    yield of(
        "blob-beyond",
        "A wrapped key longer than the capsule.",
        first,
        recipient_bytes(b, blob_length=0xFFFF),
    )
    yield of(
        "blob-empty", "A wrapped key of no bytes.", first, recipient_bytes(evolve(b, blob=b""))
    )
    yield of(
        "blob-8193-bytes",
        "One byte too long.",
        first,
        recipient_bytes(evolve(b, blob=chunk(8193))),
    )
    yield of("recipients-descending", "In the wrong order.", recipient_bytes(b), first)
    yield of("recipients-repeated", "One recipient twice.", first, first)
    yield of(
        "recipients-two-for-one-key",
        "Two wraps under one key.",
        first,
        recipient_bytes(evolve(a, blob=c.blob)),
    )
    yield of(
        "share-index-without-threshold",
        "Where one wrap is enough, the index is 0.",
        recipient_bytes(evolve(a, share_index=1)),
    )
    yield of("recipient-cut", "Nothing but the algorithm of a second one.", first, b"\x05", count=2)


def extensions() -> Iterator[Vector]:
    """Order, bits and values of extensions."""

    def of(name: str, comment: str, *items: bytes) -> Vector:
        k = raw_capsule(KEYS, wraps(KEYS), extensions=list(items))
        return fails(f"extension-{name}", comment, k + M)

    yield of("descending", "In the wrong order.", extension(0x10), extension(0x0F))
    yield of("repeated", "One type twice.", extension(0x10), extension(0x10))
    yield of("beyond", "Longer than the capsule.", extension(0x10, b"", 0xFFFF))
    for number in (0x8000, 0x8002, 0xBFFF, 0xC000, 0xFFFF):
        yield of(f"critical-{number:#06x}", "Critical and not known.", extension(number))
    yield of("padding-not-zero", "Padding is zero.", extension(0, bytes(7) + b"\x01"))
    for size in (0, 7, 9):
        yield of(
            f"created-{size}-bytes", "The creation time has 8 bytes.", extension(3, bytes(size))
        )
    b, c = u16(B.encode()), u16(C.encode())
    for name, comment, value in (
        ("empty", "Names at least one.", b""),
        ("descending", "In ascending order.", c + b),
        ("repeated", "Each once.", b + b),
        ("cut", "A key URI longer than the extension.", b + c[:-1]),
        ("half-a-length", "One byte of a length.", b + b"\x00"),
        ("empty-uri", "A key URI is not empty.", u16(b"") + b),
        ("uri-too-long", "Nor longer than 1024 bytes.", u16(b"x" * 1025)),
        ("uri-not-visible", "Nor anything but visible ASCII.", u16(b"local:// x")),
    ):
        yield of(f"missing-{name}", comment, extension(0x4002, value))
    yield of(
        "share-checks-without-threshold",
        "Where one wrap is enough there are no shares.",
        extension(1, bytes(16)),
    )
    yield of("share-checks-empty", "Not even an empty list of checks.", extension(1))


# --- before and after unwrapping (section 9) -----------------------------------------------------


def scope_rule() -> Iterator[Vector]:
    """The scope stands in the effective context, before any key is used."""
    for name, comment, supplied, stored in (
        ("absent", "The context lacks the scope's pair.", {"row": "7"}, None),
        ("no-context", "There is no context at all.", {}, None),
        ("other-value", "Another tenant's.", {"tenant": "t2"}, None),
        ("other-case", "Keys are compared byte by byte.", {"Tenant": "t1"}, None),
        ("longer-value", "Values are compared whole.", {"tenant": "t1 "}, None),
        ("contradicted", "The stored context says otherwise.", {"tenant": "t1"}, {"tenant": "t2"}),
        ("contradicts", "The supplied one says otherwise.", {"tenant": "t2"}, {"tenant": "t1"}),
        ("stored-other-value", "Another tenant's, stored.", {}, {"tenant": "t2"}),
    ):
        context = Context(supplied)
        body = message(KEYS, context, None if stored is None else Context(stored))
        yield fails(f"scope-rule-{name}", comment, GOOD + body, "integrity", context=context)
    yield fails(
        "scope-rule-stream",
        "For streams as well.",
        GOOD + stream(KEYS, context=Context({"row": "7"})),
        "integrity",
        context=Context({"row": "7"}),
    )


def pairing() -> Iterator[Vector]:
    """K and body name the same DEK."""
    yield fails(
        "key-id-of-another-key",
        "The message belongs to another DEK.",
        GOOD + message(OTHER_KEYS),
        "integrity",
    )
    yield fails("key-id-altered", "The message's key id.", GOOD + flipped(M, 18), "integrity")
    yield fails("key-id-altered-stream", "The stream's key id.", GOOD + flipped(S, 4), "integrity")
    yield fails(
        "key-id-of-another-scope",
        "The same DEK in another scope is another key.",
        GOOD + message(Keys(DEK, Context())),
        "integrity",
    )


def wrapped_keys() -> Iterator[Vector]:
    """Which recipients are tried, and what comes out of them."""
    three = capsule(KEYS, wraps(KEYS, THREE)) + M
    yield fails("no-recipient-no-keys", "The reader has no key.", three, "no-recipient", [])
    yield fails(
        "no-recipient-other-keys",
        "The reader has other keys only.",
        three,
        "no-recipient",
        [kek("local://vectors/a/2"), kek("local://vectors/a")],
    )
    yield fails(
        "no-recipient-other-algorithm",
        "The key is the reader's, the algorithm is not the one it is for.",
        three,
        "no-recipient",
        [kek(A, KWP)],
    )

    def bad(name: str, comment: str, *items: Recipient, key: Kek = LOCAL) -> Vector:
        k = capsule(KEYS, items)
        return fails(f"wrap-{name}", comment, k + M, "integrity", [key], max_unwraps=1)

    (good,) = wraps(KEYS)
    yield fails(
        "wrap-wrong-key",
        "The reader's key of that name is another one.",
        GOOD + M,
        "integrity",
        [wrong(kek(A))],
        max_unwraps=1,
    )
    yield bad("altered", "One bit of the wrapped key.", evolve(good, blob=flipped(good.blob, 20)))
    yield bad("cut", "The wrapped key lacks a byte.", evolve(good, blob=good.blob[:-1]))
    yield bad("one-byte", "Too short for anything.", evolve(good, blob=b"\x00"))
    yield bad("other-key", "Another DEK.", *wraps(KEYS, secret=OTHER_DEK))
    yield bad("31-bytes", "A DEK has 32 bytes.", *wraps(KEYS, secret=DEK[:31]))
    yield bad("33-bytes", "A DEK has 32 bytes.", *wraps(KEYS, secret=DEK + b"\x00"))
    yield bad("no-bytes", "A DEK has 32 bytes.", *wraps(KEYS, secret=b""))
    yield from bound_wraps(bad)
    five = [kek(f"local://vectors/{number:02}/1") for number in range(32)]
    yield fails(
        "wrap-four-bad-ones",
        "Four proven bad wraps are enough, though the fifth is good.",
        capsule(KEYS, [*wraps(KEYS, five[:4], OTHER_DEK), *wraps(KEYS, five[4:5])]) + M,
        "integrity",
        five[:5],
        max_unwraps=4,
    )
    yield fails(
        "wrap-32-bad-ones",
        "32 known keys, 32 bad wraps: four are tried.",
        capsule(KEYS, wraps(KEYS, five, OTHER_DEK)) + M,
        "integrity",
        five,
        max_unwraps=4,
    )


def bound_wraps(bad: Callable[..., Vector]) -> Iterator[Vector]:
    """Wraps that are bound to another W."""
    for name, keys, comment in (
        ("scope", Keys(DEK, Context({"tenant": "t2"})), "another tenant's wrap of the same DEK"),
        ("no-scope", Keys(DEK, Context()), "a wrap without scope of the same DEK"),
        ("suite", Keys(DEK, SCOPE, 2), "a wrap of the same DEK for another suite"),
    ):
        for algorithm in (GCM, KWP):
            key = kek(A, algorithm)
            yield bad(
                f"bound-to-other-{name}-{algorithm:#06x}",
                f"It is {comment}.",
                *wraps(keys, [key]),
                key=key,
            )
    for algorithm in (GCM, KWP):
        key = kek(A, algorithm)
        yield bad(
            f"bound-to-a-share-{algorithm:#06x}",
            "It was wrapped as share 1 of 2.",
            *wraps(KEYS, [key], index=1, threshold=2),
            key=key,
        )
    key = kek(A, KWP)
    yield bad(
        "0x0502-digest-altered", "The digest inside is another one.", _kwp(bytes(32) + DEK), key=key
    )
    yield bad("0x0502-digest-absent", "The DEK alone.", _kwp(DEK), key=key)
    yield bad("0x0502-digest-behind", "In the wrong order.", _kwp(DEK + bytes(32)), key=key)
    for algorithm, (key, blob) in hpke_keks().items():
        item = Recipient(key.key_uri, algorithm, blob)
        for name, changed in (
            ("ciphertext-altered", flipped(blob, -20)),
            ("key-share-altered", flipped(blob, 40)),
            ("cut", blob[:-1]),
        ):
            yield bad(f"{algorithm:#06x}-{name}", "HPKE.", evolve(item, blob=changed), key=key)
        keys = Keys(DEK, Context())
        yield fails(
            f"wrap-{algorithm:#06x}-bound-to-other-scope",
            "A wrap of the same DEK in another scope.",
            capsule(keys, [item]) + message(keys),
            "integrity",
            [key],
            max_unwraps=1,
        )


def _kwp(inside: bytes) -> Recipient:
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

    return Recipient(A, KWP, aes_key_wrap_with_padding(kek(A).key, inside))


def commitment_and_mac() -> Iterator[Vector]:
    """K altered by somebody who has no DEK, and in one case by somebody who has."""
    three = wraps(KEYS, THREE)
    whole = capsule(KEYS, three)

    def unsigned(name: str, comment: str, changed: bytes) -> Vector:
        body = b"\xc1\x12\x01" + changed[12:28] + M[19:]
        return fails(f"mac-{name}", comment, changed + body, "integrity", THREE, max_unwraps=1)

    mac = whole[-32:]
    yield unsigned("altered", "One bit of the MAC.", flipped(whole, -1))
    yield unsigned("zero", "No MAC to speak of.", altered(whole, -32, bytes(32)))
    yield unsigned(
        "of-another-key",
        "Made with another DEK.",
        raw_capsule(KEYS, three, mac=OTHER_KEYS.capsule_mac(whole[:-32])),
    )
    for name, comment, fields in (
        ("generation", "Another generation.", {"generation": b"\x00\x00\x00\x01"}),
        ("extension-added", "An extension more.", {"extensions": [extension(2)]}),
    ):
        yield unsigned(name, comment, raw_capsule(KEYS, three, mac=mac, **fields))
    yield unsigned(
        "recipient-removed", "One recipient less.", raw_capsule(KEYS, three[:2], mac=mac)
    )
    yield unsigned(
        "recipient-added",
        "One recipient more.",
        raw_capsule(KEYS, [*three, Recipient("zzz:", 1, b"?")], mac=mac),
    )
    yield unsigned(
        "recipient-renamed",
        "Another key URI.",
        raw_capsule(KEYS, [*three[:2], evolve(three[2], key_uri=C + "0")], mac=mac),
    )
    padded = capsule(KEYS, three, padding=8)
    yield unsigned(
        "padding-removed",
        "The padding is covered too.",
        raw_capsule(KEYS, three, mac=padded[-32:]),
    )
    commitment = flipped(KEYS.commitment, 31)
    k = raw_capsule(KEYS, three, commitment=commitment)
    yield fails(
        "commitment-second-half",
        "All 32 bytes are compared, not the key id alone.",
        k + M,
        "integrity",
        THREE,
        max_unwraps=3,
    )
    scope = Context({"tenant": "t2"})
    yield fails(
        "commitment-of-another-scope",
        "The scope was replaced; the wraps are under a key that ignores it.",
        raw_capsule(KEYS, three, scope=scope.encoded) + message(KEYS, scope),
        "integrity",
        THREE,
        context=scope,
        max_unwraps=3,
    )


# --- M (section 6) -------------------------------------------------------------------------------


def messages() -> Iterator[Vector]:
    """Lengths of M, and alterations of each of its fields."""
    for size in (3, 19, 42, 43, 58):
        yield fails(f"message-cut-after-{size}", "No room for a tag.", GOOD + M[:size])
    yield fails(
        "message-cut", "The last byte is missing.", GOOD + M[:-1], "integrity", max_unwraps=1
    )

    def bad(name: str, comment: str, body: bytes, context: Context = CONTEXT) -> Vector:
        return fails(
            f"message-{name}", comment, GOOD + body, "integrity", context=context, max_unwraps=1
        )

    yield bad("longer", "A byte more.", M + b"\x00")
    for name, at in (("salt", 19), ("iv", 31), ("ciphertext", 43), ("tag", -1)):
        yield bad(f"{name}-altered", "One bit.", flipped(M, at))
    other = message(KEYS, plaintext=b"another message")
    yield bad("spliced", "The head of one, the rest of another.", M[:43] + other[43:-16] + M[-16:])
    for name, pairs in (
        ("pair-missing", {"tenant": "t1"}),
        ("pair-added", {**CONTEXT, "col": "ssn"}),
        ("value-altered", {**CONTEXT, "row": "8"}),
        ("pair-re-split", {"tenant": "t1", "ro": "w7"}),
        ("composed", {**CONTEXT, "row": "7", "\u00e9": "1"}),
    ):
        sealed = message(KEYS, Context({**CONTEXT, "e\u0301": "1"})) if name == "composed" else M
        yield bad(f"context-{name}", "The context is bound as it is.", sealed, Context(pairs))
    stored = message(KEYS, SCOPE, Context({"row": "7"}))
    at = stored.index(b"row") + 5
    yield bad("stored-altered", "A value of the stored context.", altered(stored, at, b"8"), SCOPE)
    yield bad(
        "stored-removed",
        "The stored context is supplied instead, and gone from the message.",
        b"\xc1\x12" + stored[2:43] + stored[at + 1 :],
    )
    yield bad(
        "stored-added",
        "An empty stored context was put in.",
        b"\xc1\x1a" + M[2:43] + u16(Context().encoded) + M[43:],
    )
    yield bad(
        "kind-not-in-the-key",
        "Sealed under the subkey of the other kind.",
        raw_message(KEYS, kind=0x1A, head=b"\xc1\x12\x01"),
    )
    yield bad(
        "of-the-stored-kind-without-block-in-the-data",
        "The context block is associated data too.",
        _without_block(),
        SCOPE,
    )


def _without_block() -> bytes:
    block = u16(Context({"row": "7"}).encoded)
    salt, iv = Pinned("salt")(12), Pinned("iv")(12)
    sealed = KEYS.one_shot(0x1A, salt).encrypt(iv, PLAINTEXT, SCOPE.encoded)
    return b"\xc1\x1a\x01" + KEYS.key_id + salt + iv + block + sealed


# --- S (section 7) -------------------------------------------------------------------------------


def last(index: int, size: int = 10) -> Segment:
    """The last segment of a stream."""
    return Segment(index, True, chunk(size, index))  # noqa: FBT003  as it reads in the document


def full(index: int) -> Segment:
    """A segment that is not the last."""
    return Segment(index, False, chunk(SEGMENT, index))  # noqa: FBT003  as above


def streams() -> Iterator[Vector]:
    """The header of S, and every way to tamper with its segments."""
    for size in (3, 20, 43, 44, 75):
        yield fails(f"stream-cut-after-{size}", "Cut within the header.", GOOD + S[:size])
    for log2 in (0, 11, 23, 255):
        head = bytes((0xC1, 0x13, 1, log2))
        yield fails(
            f"stream-segments-of-2-to-{log2}",
            "Smaller than 4 KiB or larger than 4 MiB.",
            GOOD + raw_stream(KEYS, [last(0)], head=head),
        )

    def bad(name: str, comment: str, body: bytes, context: Context = CONTEXT) -> Vector:
        return fails(
            f"stream-{name}", comment, GOOD + body, "integrity", context=context, max_unwraps=1
        )

    yield bad("segment-size-altered", "The header is committed to.", altered(S, 3, b"\x0d"))
    yield bad("salt-altered", "The header is committed to.", flipped(S, 20))
    for name, at in (("first", 44), ("last", 75)):
        yield bad(f"commitment-altered-{name}-byte", "One bit.", flipped(S, at))
    yield bad("other-context", "The context is committed to.", S, Context({**CONTEXT, "row": "8"}))
    stored = stream(KEYS, context=SCOPE, stored=Context({"row": "7"}))
    at = stored.index(b"row") + 5
    yield bad(
        "stored-altered", "The stored context is committed to.", altered(stored, at, b"8"), SCOPE
    )
    yield bad(
        "stored-removed",
        "The stored context is supplied instead, and gone from the stream.",
        b"\xc1\x13" + stored[2:44] + stored[at + 1 :],
    )
    yield bad(
        "message-key", "A message cannot pose as a stream.", b"\xc1\x13\x01\x0c" + M[3:] + bytes(64)
    )
    yield from cut_streams(bad)
    yield from rearranged_streams(bad)


def cut_streams(bad: Callable[..., Vector]) -> Iterator[Vector]:
    """Ends in the wrong place."""
    for name, comment, size in (
        ("before-the-first-segment", "A header and nothing else.", S_HEADER),
        ("within-the-first-iv", "Less than an IV and a tag.", S_HEADER + 11),
        ("within-the-first-segment", "In the middle.", S_HEADER + 1000),
        ("within-the-first-tag", "One byte less.", S_HEADER + STRIDE - 1),
        ("after-the-first-segment", "At a boundary: it is not the last.", S_HEADER + STRIDE),
        ("after-the-second-segment", "At a boundary: it is not the last.", S_HEADER + 2 * STRIDE),
        ("within-the-last-iv", "Less than an IV and a tag.", S_HEADER + 2 * STRIDE + 5),
        ("one-byte-short", "One byte less.", len(S) - 1),
    ):
        yield bad(f"cut-{name}", comment, S[:size])
    yield bad("one-byte-more", "Behind the last segment.", S + b"\x00")
    yield bad("28-bytes-more", "As long as an empty segment.", S + bytes(28))
    yield bad("last-segment-twice", "And again.", S + S[S_HEADER + 2 * STRIDE :])
    yield bad(
        "never-ends",
        "A multiple of the segment size takes an empty last segment.",
        raw_stream(KEYS, [full(0), full(1)]),
    )


def rearranged_streams(bad: Callable[..., Vector]) -> Iterator[Vector]:
    """Segments altered, moved, exchanged, or lying about themselves."""
    header, rest = S[:S_HEADER], S[S_HEADER:]
    one, two, end = rest[:STRIDE], rest[STRIDE : 2 * STRIDE], rest[2 * STRIDE :]
    for name, at in (("iv", 0), ("ciphertext", 100), ("tag", STRIDE - 1)):
        yield bad(
            f"{name}-altered", "In the second segment.", header + one + flipped(two, at) + end
        )
    yield bad("first-dropped", "Segments are numbered.", header + two + end)
    yield bad("second-dropped", "Segments are numbered.", header + one + end)
    yield bad("swapped", "Segments are numbered.", header + two + one + end)
    yield bad("repeated", "Segments are numbered.", header + one + one + two + end)
    other = raw_stream(KEYS, [full(0), full(1), last(2)], salt=bytes(24))
    yield bad(
        "spliced",
        "The second segment of another stream under the same DEK.",
        header + one + other[S_HEADER + STRIDE : S_HEADER + 2 * STRIDE] + end,
    )
    yield bad("numbered-from-one", "The first is 0.", raw_stream(KEYS, [full(1), last(2)]))
    yield bad(
        "full-segment-final",
        "The last segment is never full.",
        raw_stream(KEYS, [Segment(0, final=True, chunk=chunk(SEGMENT))]),
    )
    yield bad(
        "full-segment-final-then-empty",
        "A full segment is never the last.",
        raw_stream(KEYS, [Segment(0, final=True, chunk=chunk(SEGMENT)), last(1, 0)]),
    )
    yield bad(
        "last-segment-not-final",
        "A short segment says that it is the last.",
        raw_stream(KEYS, [full(0), Segment(1, final=False, chunk=chunk(10))]),
    )
    yield bad(
        "short-segment-within",
        "Only the last segment is short.",
        raw_stream(KEYS, [Segment(0, final=False, chunk=chunk(100)), last(1)]),
    )
    yield bad(
        "two-ends",
        "Nothing follows the last segment.",
        raw_stream(KEYS, [last(0), last(1)]),
    )
    yield bad(
        "long-segment-within",
        "No segment is longer than the header says.",
        raw_stream(KEYS, [Segment(0, final=False, chunk=chunk(SEGMENT + 1)), last(1)]),
    )


# --- thresholds (sections 2, 5 and 9) ------------------------------------------------------------


def thresholds() -> Iterator[Vector]:
    """Shares that are missing, wrong, or of something else."""
    holders = {1: kek(A), 2: kek(B), 3: kek(C)}
    good = shares(KEYS, 2, holders)

    def of(
        name: str,
        comment: str,
        items: Sequence[Recipient],
        keks: Sequence[Kek] = THREE,
        *,
        max_unwraps: int = 3,
        error: str = "integrity",
        threshold: int = 2,
    ) -> Vector:
        k = capsule(KEYS, items, threshold=threshold)
        return fails(f"threshold-{name}", comment, k + M, error, keks, max_unwraps=max_unwraps)

    yield of(
        "one-of-two",
        "One share is not enough.",
        good,
        [kek(A)],
        error="no-recipient",
        max_unwraps=1,
    )
    yield of("none", "None of the keys is there.", good, [], error="no-recipient", max_unwraps=0)
    yield of(
        "wrong-key",
        "Two keys are there, one of them is another one.",
        good,
        [kek(A), wrong(kek(B))],
        max_unwraps=2,
    )
    other = shares(KEYS, 2, holders, OTHER_DEK)
    yield of(
        "share-replaced",
        "A share of another DEK, against the check of the right one.",
        [good[0], evolve(other[1], share_check=good[1].share_check)],
        max_unwraps=2,
    )
    yield of(
        "share-of-another-key",
        "A share of another DEK with its own check.",
        [good[0], other[1]],
        max_unwraps=2,
    )
    yield of("shares-of-another-key", "Good shares of another DEK.", other)
    yield of(
        "checks-swapped",
        "The checks of two shares were exchanged.",
        [
            evolve(good[0], share_check=good[1].share_check),
            evolve(good[1], share_check=good[0].share_check),
        ],
        max_unwraps=2,
    )
    yield of(
        "check-altered",
        "One bit of one check, and the reader has no third share.",
        [good[0], evolve(good[1], share_check=flipped(good[1].share_check, 15))],
        max_unwraps=2,
    )
    yield of(
        "indexes-swapped",
        "The index is in what a share is bound to.",
        [evolve(good[0], share_index=2), evolve(good[1], share_index=1)],
        max_unwraps=2,
    )
    yield of(
        "whole-keys",
        "The DEK itself instead of shares.",
        [
            evolve(item, share_index=index, share_check=good[index - 1].share_check)
            for index, item in enumerate(wraps(KEYS, THREE), 1)
        ],
    )
    yield of("raised", "Shares of 2-of-3 in a capsule that asks for 3.", good, threshold=3)
    many = {index: kek(f"local://vectors/{index:02}/1") for index in range(1, 33)}
    spoilt = [evolve(item, share_check=bytes(16)) for item in shares(KEYS, 2, many)]
    yield of(
        "32-bad-shares",
        "Four proven bad shares are enough.",
        spoilt,
        [*many.values()],
        max_unwraps=4,
    )
    k = capsule(KEYS, good, threshold=2)
    yield fails(
        "threshold-mac",
        "One bit of the MAC.",
        flipped(k, -1) + M,
        "integrity",
        THREE,
        max_unwraps=2,
    )
    yield from malformed_thresholds(good)


def malformed_thresholds(good: Sequence[Recipient]) -> Iterator[Vector]:
    """Indexes and checks that contradict each other."""
    checks = b"".join(item.share_check for item in good)

    def of(name: str, comment: str, items: Sequence[Recipient], *values: bytes) -> Vector:
        k = raw_capsule(
            KEYS, items, threshold=2, extensions=[extension(1, value) for value in values]
        )
        return fails(f"threshold-{name}", comment, k + M, keks=THREE)

    yield of("no-checks", "Shares come with checks.", good)
    yield of("two-checks-for-three", "One for each.", good, checks[:32])
    yield of("four-checks-for-three", "One for each.", good, checks + bytes(16))
    yield of("checks-cut", "16 bytes each.", good, checks[:-1])
    zero = [evolve(good[0], share_index=0), *good[1:]]
    yield of("index-zero", "0 is where the DEK is.", zero, checks)
    same = [good[0], evolve(good[1], share_index=1), good[2]]
    yield of("index-repeated", "Each share is another point.", same, checks)
