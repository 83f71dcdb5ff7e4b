"""Vectors that open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kms_core.aead import Keys
from kms_core.context import MAX_CONTEXT_BYTES, Context
from kms_core.header import MAX_BLOB_BYTES, MAX_CAPSULE_BYTES, Recipient
from kms_core.inspection import armor
from tests.vectors.forge import (
    CONTEXT,
    DEK,
    GCM,
    KWP,
    PLAINTEXT,
    SCOPE,
    SEGMENT,
    A,
    B,
    C,
    Kek,
    Vector,
    capsule,
    chunk,
    hpke_keks,
    kek,
    message,
    shares,
    stream,
    wraps,
    wrong,
)

KEYS = Keys(DEK, SCOPE)
THREE = (kek(A), kek(B), kek(C))
FOREIGN = Recipient("other-kms://somewhere/key/9", 0x7FFF, b"opaque to everybody else")


def opens(
    name: str,
    comment: str,
    inputs: Mapping[str, bytes | str],
    keks: Sequence[Kek] = (kek(A),),
    *,
    context: Context = CONTEXT,
    stored: Context | None = None,
    plaintext: bytes = PLAINTEXT,
    max_unwraps: int = 1,
) -> Vector:
    """A vector that opens."""
    return Vector(name, comment, inputs, keks, context, stored, plaintext, None, max_unwraps, DEK)


def inline(*parts: bytes) -> dict[str, bytes | str]:
    """K in front of M or S."""
    return {"envelope": b"".join(parts)}


def messages() -> Iterator[Vector]:
    """M behind and beside K: plaintexts and contexts."""
    k = capsule(KEYS, wraps(KEYS))
    yield opens("message", "The example of the document.", inline(k, message(KEYS)))
    yield opens(
        "message-empty",
        "No plaintext at all: only a tag.",
        inline(k, message(KEYS, plaintext=b"")),
        plaintext=b"",
    )
    longer = chunk(5000)
    yield opens(
        "message-5000-bytes",
        "Longer than a stream's smallest segment, still one message.",
        inline(k, message(KEYS, plaintext=longer)),
        plaintext=longer,
    )
    yield opens(
        "message-beside-its-capsule",
        "The capsule was kept elsewhere; the message names it by key id.",
        {"capsule": k, "body": message(KEYS)},
    )
    yield opens("message-as-text", "base64url without padding.", {"text": armor(k + message(KEYS))})
    yield from message_contexts(k)
    yield from scopes()


def message_contexts(k: bytes) -> Iterator[Vector]:
    """Supplied and stored contexts."""
    row = Context({"row": "7"})
    yield opens(
        "context-stored-only",
        "All of the context travels with the message; the caller supplies none.",
        inline(k, message(KEYS, Context(), CONTEXT)),
        context=Context(),
        stored=CONTEXT,
    )
    yield opens(
        "context-supplied-and-stored",
        "The scope's pair is supplied, the rest is stored.",
        inline(k, message(KEYS, SCOPE, row)),
        context=SCOPE,
        stored=row,
    )
    yield opens(
        "context-stored-and-scope-in-it",
        "The scope's pair is in the stored context.",
        inline(k, message(KEYS, row, SCOPE)),
        context=row,
        stored=SCOPE,
    )
    yield opens(
        "context-scope-in-both",
        "A pair may stand in both contexts if the value is the same.",
        inline(k, message(KEYS, CONTEXT, SCOPE)),
        stored=SCOPE,
    )
    yield opens(
        "context-key-in-both-with-two-values",
        "Outside the scope, one key may have two values: both contexts are bound as they are.",
        inline(k, message(KEYS, CONTEXT, Context({"row": "8"}))),
        stored=Context({"row": "8"}),
    )
    yield opens(
        "context-stored-empty",
        "A stored context may be the empty map: 00 02 00 00.",
        inline(k, message(KEYS, CONTEXT, Context())),
        stored=Context(),
    )
    for name, comment, pairs in odd_contexts():
        context = Context({**pairs, "tenant": "t1"})
        yield opens(f"context-{name}", comment, inline(k, message(KEYS, context)), context=context)
        yield opens(
            f"context-stored-{name}",
            comment,
            inline(k, message(KEYS, SCOPE, context)),
            context=SCOPE,
            stored=context,
        )


def odd_contexts() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Pairs at the edges of what a map is."""
    yield "empty-value", "A value may be empty, a key may not.", {"note": ""}
    yield (
        "utf-8-order",
        "U+FFFD sorts before U+10000 by UTF-8 bytes, and behind it by UTF-16 code units.",
        {"\ufffd": "1", "\U00010000": "2"},
    )
    yield (
        "not-normalized",
        "Precomposed and decomposed letters are two keys.",
        {"\u00e9": "1", "e\u0301": "2"},
    )
    yield "control-characters", "Any code point is text.", {"\x00": "\n", "tab\t": "\x7f"}
    yield "prefix-order", "A key sorts before its own continuations.", {"a": "1", "aa": "2"}
    yield (
        "almost-reserved",
        "Only the exact prefix is reserved.",
        {"kms_core": "1", "KMS_CORE:kid": "2", "kms-core:kid": "3"},
    )
    yield "64-pairs", "As many pairs as a map takes.", {f"key{n:02}": str(n) for n in range(63)}
    used = len(Context({"tenant": "t1", "long": ""}).encoded)
    yield (
        "8192-bytes",
        "As long as a map may be.",
        {"long": "x" * (MAX_CONTEXT_BYTES - used)},
    )


def scopes() -> Iterator[Vector]:
    """What the DEK is bound to."""
    used = len(Context({"long": ""}).encoded)
    for name, comment, scope in (
        ("none", "The DEK serves every context.", Context()),
        (
            "16-pairs",
            "As many pairs as a scope takes.",
            Context({f"k{n:02}": "v" for n in range(16)}),
        ),
        ("2048-bytes", "As long as a scope may be.", Context({"long": "x" * (2048 - used)})),
    ):
        keys = Keys(DEK, scope)
        context = Context({**scope, "row": "7"})
        yield opens(
            f"scope-{name}",
            comment,
            inline(capsule(keys, wraps(keys)), message(keys, context)),
            context=context,
        )


def capsules() -> Iterator[Vector]:
    """K: recipients, extensions and sizes."""
    m = message(KEYS)

    def of(name: str, comment: str, recipients: Sequence[Recipient], **fields: Any) -> Vector:
        return opens(name, comment, inline(capsule(KEYS, recipients, **fields), m))

    one = wraps(KEYS)
    yield of("generation-7", "Rewrapped seven times.", one, generation=7)
    yield of(
        "generation-largest",
        "A reader takes any generation; writers stop at 2^31.",
        one,
        generation=(1 << 32) - 1,
    )
    yield of("extension-created", "The creation time is informative.", one, created=1_800_000_000)
    yield of("extension-created-largest", "Also far in the future.", one, created=(1 << 64) - 1)
    yield of("extension-padding-empty", "Padding of no bytes.", one, padding=0)
    yield of("extension-padding", "Padding of 1000 bytes.", one, padding=1000)
    yield of("extension-missing", "Two more were intended.", one, missing=(B, C))
    yield of(
        "extension-missing-contradicted",
        "Named as missing and yet there: ignored, never a reason to refuse.",
        one,
        missing=(A, B),
    )
    yield of(
        "extension-unknown",
        "Neither critical nor known: ignored.",
        one,
        unknown=((0x0002, b"later"), (0x3FFF, b""), (0x4000, b"x"), (0x7FFF, bytes(3))),
    )
    yield of(
        "extension-all-known",
        "Every known extension that goes with a threshold of 1.",
        one,
        padding=5,
        created=1_800_000_000,
        missing=(B,),
    )
    yield of(
        "recipient-others-skipped",
        "Recipients that are not for this reader are passed over.",
        [*wraps(KEYS, THREE), FOREIGN],
    )
    yield of(
        "recipient-unknown-algorithm-skipped",
        "An algorithm that nobody has heard of.",
        [*one, Recipient(B, 0xFFFE, b"?"), Recipient(C, 0x0000, b"?")],
    )
    yield of(
        "recipient-largest-others",
        "A key URI of 1024 bytes and a wrapped key of 8192 in another recipient.",
        [*one, Recipient("x" * 1024, 0x7FFF, chunk(MAX_BLOB_BYTES))],
    )
    yield of(
        "recipient-every-visible-character",
        "Key URIs are compared byte by byte, whatever visible ASCII is in them.",
        [*one, Recipient(bytes(range(0x21, 0x7F)).decode(), 0x7FFF, b"?")],
    )
    yield of(
        "capsule-largest",
        "Padded to 65536 bytes.",
        one,
        padding=MAX_CAPSULE_BYTES - len(capsule(KEYS, one)) - 4,
    )
    yield from recipients_of_this_reader(m)


def recipients_of_this_reader(m: bytes) -> Iterator[Vector]:
    """Several keys, several algorithms, and wraps that are of no use."""
    three = inline(capsule(KEYS, wraps(KEYS, THREE)), m)
    yield opens("recipient-second", "Only the second key is there.", three, [kek(B)])
    yield opens("recipient-last", "Only the last key is there.", three, [kek(C)])
    yield opens("recipient-any", "All three keys are there: any will do.", three, THREE)
    yield opens(
        "recipient-bad-then-good",
        "The reader's key of the first recipient is another one: the next is tried.",
        three,
        [wrong(kek(A)), kek(B)],
        max_unwraps=2,
    )
    many = [kek(f"local://vectors/{number:02}/1") for number in range(32)]
    yield opens(
        "recipient-32nd",
        "As many recipients as there may be.",
        inline(capsule(KEYS, wraps(KEYS, many)), m),
        [many[-1]],
    )
    yield opens(
        "recipient-three-bad-then-good",
        "Fewer than four wrong keys do not end the search.",
        inline(capsule(KEYS, wraps(KEYS, many)), m),
        [*map(wrong, many[:3]), many[3]],
        max_unwraps=4,
    )
    for algorithm in (GCM, KWP):
        key = kek(A, algorithm)
        yield opens(
            f"wrap-{algorithm:#06x}",
            "A local key.",
            inline(capsule(KEYS, wraps(KEYS, [key])), m),
            [key],
        )
    for algorithm, (key, blob) in hpke_keks().items():
        recipient = Recipient(key.key_uri, algorithm, blob)
        yield opens(
            f"wrap-{algorithm:#06x}",
            "HPKE to a public key.",
            inline(capsule(KEYS, [recipient, *wraps(KEYS)]), m),
            [key],
        )


def streams() -> Iterator[Vector]:
    """S: lengths around the segment size, contexts, segment sizes."""
    k = capsule(KEYS, wraps(KEYS))
    for name, size in (
        ("empty", 0),
        ("one-byte", 1),
        ("segment-less-one", SEGMENT - 1),
        ("segment", SEGMENT),
        ("segment-and-one", SEGMENT + 1),
        ("two-segments", 2 * SEGMENT),
        ("two-segments-and-some", 2 * SEGMENT + 100),
    ):
        plaintext = chunk(size)
        yield opens(
            f"stream-{name}",
            f"{size} bytes in segments of {SEGMENT}.",
            inline(k, stream(KEYS, plaintext)),
            plaintext=plaintext,
        )
    for log2 in (13, 18, 22):
        yield opens(
            f"stream-segments-of-2-to-{log2}",
            "Shorter than its one segment.",
            inline(k, stream(KEYS, segment_log2=log2)),
        )
    yield opens(
        "stream-beside-its-capsule",
        "The capsule was kept elsewhere.",
        {"capsule": k, "body": stream(KEYS)},
    )
    yield opens("stream-as-text", "base64url without padding.", {"text": armor(k + stream(KEYS))})
    row = Context({"row": "7"})
    yield opens(
        "stream-context-stored-only",
        "All of the context travels with the stream.",
        inline(k, stream(KEYS, chunk(SEGMENT), Context(), CONTEXT)),
        context=Context(),
        stored=CONTEXT,
        plaintext=chunk(SEGMENT),
    )
    yield opens(
        "stream-context-supplied-and-stored",
        "Both are bound.",
        inline(k, stream(KEYS, context=SCOPE, stored=row)),
        context=SCOPE,
        stored=row,
    )
    yield opens(
        "stream-context-stored-empty",
        "A stored context may be the empty map.",
        inline(k, stream(KEYS, stored=Context())),
        stored=Context(),
    )


def thresholds() -> Iterator[Vector]:
    """K with shares."""
    m = message(KEYS)
    three = {1: kek(A), 2: kek(B), 3: kek(C)}

    def of(
        name: str,
        comment: str,
        threshold: int,
        holders: Mapping[int, Kek],
        keks: Sequence[Kek],
        *,
        max_unwraps: int = 0,
    ) -> Vector:
        k = capsule(KEYS, shares(KEYS, threshold, holders), threshold=threshold)
        return opens(name, comment, inline(k, m), keks, max_unwraps=max_unwraps or threshold)

    yield of("threshold-2-of-2", "Both shares are needed.", 2, {1: kek(A), 2: kek(B)}, THREE[:2])
    for left, right in ((A, B), (A, C), (B, C)):
        yield of(
            f"threshold-2-of-3-{left[-3]}{right[-3]}",
            "Two of three shares.",
            2,
            three,
            [kek(left), kek(right)],
        )
    yield of("threshold-2-of-3-all", "Any two of the three will do.", 2, three, THREE)
    yield of(
        "threshold-2-of-3-one-bad",
        "The reader's key of one recipient is another one; the other two suffice.",
        2,
        three,
        [wrong(kek(A)), kek(B), kek(C)],
        max_unwraps=3,
    )
    yield of("threshold-3-of-3", "All shares are needed.", 3, three, THREE)
    yield of(
        "threshold-indexes-out-of-order",
        "Recipients are in the order of their key URIs, whatever their share index.",
        2,
        {255: kek(A), 1: kek(B), 128: kek(C)},
        [kek(A), kek(C)],
    )
    yield of(
        "threshold-mixed-algorithms",
        "Each share is wrapped by its holder's own algorithm.",
        2,
        {1: kek(A, KWP), 2: kek(B)},
        [kek(A, KWP), kek(B)],
    )
    many = {number + 1: kek(f"local://vectors/{number:02}/1") for number in range(32)}
    yield of(
        "threshold-16-of-32",
        "The last sixteen.",
        16,
        many,
        [*many.values()][16:],
    )
    k = capsule(KEYS, shares(KEYS, 2, three), threshold=2)
    yield opens(
        "threshold-stream",
        "A stream behind a threshold.",
        inline(k, stream(KEYS)),
        [kek(B), kek(C)],
        max_unwraps=2,
    )
    k = capsule(KEYS, shares(KEYS, 2, {1: kek(A), 2: kek(B)}), threshold=2, missing=(C,), padding=9)
    yield opens(
        "threshold-missing-recipient",
        "Every known extension that goes with a threshold.",
        inline(k, m),
        THREE,
        max_unwraps=2,
    )
