"""The worked examples of docs/format.md, field by field and in the order of the wire.

Keys that the library keeps to itself are derived by the second reader.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence

from kms_core.aead import Keys, bind_context, share_check
from kms_core.context import Context
from kms_core.envelope import Shares, wrap_context
from tests.vectors.decoder import expand
from tests.vectors.forge import (
    CONTEXT,
    DEK,
    HPKE_INPUTS,
    KWP,
    PLAINTEXT,
    SALT,
    SCOPE,
    SEGMENT,
    STREAM_SALT,
    A,
    B,
    C,
    Pinned,
    capsule,
    chunk,
    kek,
    message,
    shares,
    stream,
    wraps,
)

Example = Mapping[str, bytes]

KEYS = Keys(DEK, SCOPE)
ROW = Context({"col": "ssn", "row": "7"})  # bare bodies need no pair of the scope
MESSAGE_KEY = expand(DEK, "message", b"\x01" + SCOPE.encoded)[:32]


def cut(data: bytes, *fields: tuple[str, int]) -> dict[str, bytes]:
    """Consecutive fields by name and size; the last takes what is left if its size is 0."""
    found = {}
    for name, size in fields:
        found[name] = data[: size or len(data)]
        data = data[size or len(data) :]
    assert not data
    return found


def key_schedule() -> Example:
    """Section 2."""
    bind = b"\x01" + SCOPE.encoded
    header = b"\xc1\x13\x01\x0c" + KEYS.key_id + STREAM_SALT
    stream_keys = expand(MESSAGE_KEY, "stream", header + ROW.encoded)
    return {
        "DEK": DEK,
        "scope": SCOPE.encoded,
        "bind": bind,
        "key_commit": expand(DEK, "commit", bind)[:32],
        "key_id": KEYS.key_id,
        "K_cap": expand(DEK, "capsule", bind)[:32],
        "K_msg": MESSAGE_KEY,
        "salt": SALT,
        "K_sub": expand(MESSAGE_KEY, "oneshot", b"\x12" + SALT)[:32],
        "context": ROW.encoded,
        "stream header": header,
        "K_s": stream_keys[:32],
        "C_s": stream_keys[32:],
    }


def maps() -> Example:
    """Section 3."""
    return {
        "empty": Context().encoded,
        "row, tenant": CONTEXT.encoded,
        "e U+0301, U+00E9": Context({"\u00e9": "x", "e\u0301": ""}).encoded,
    }


def wrap() -> Example:
    """Section 5: one DEK under a local key by either algorithm."""
    context = wrap_context(SCOPE, KEYS.key_id, 1)
    by_gcm = kek(A).wrap(DEK, context)
    return {
        "KEK": kek(A).key,
        "wrap_aad": context.encoded,
        "0501 blob": by_gcm,
        "0502 wraps": bytes(bind_context(DEK, context)),
        "0502 blob": kek(A, KWP).wrap(DEK, context),
    }


def one_recipient(index: str, uri: str, blob_size: int = 60) -> list[tuple[str, int]]:
    """The fields of a recipient whose wrapped key has this size."""
    return [
        (f"{index} wrap_alg", 2),
        (f"{index} share_index", 1),
        (f"{index} ref_len", 2),
        (f"{index} kek_ref", len(uri)),
        (f"{index} blob_len", 2),
        (f"{index} blob", blob_size),
    ]


CAPSULE_HEAD = [
    ("C1 11 suite k", 4),
    ("total_len", 4),
    ("generation", 4),
    ("key_commit", 32),
    ("scope_len", 2),
    ("scope", len(SCOPE.encoded)),
    ("n", 1),
]


def capsule_and_message() -> Example:
    """Sections 5 and 6: the whole of vector ``message``."""
    envelope = capsule(KEYS, wraps(KEYS)) + message(KEYS)
    return cut(
        envelope,
        *CAPSULE_HEAD,
        *one_recipient("1", A),
        ("extensions", 1),
        ("mac", 32),
        ("C1 12 suite", 3),
        ("key_id", 16),
        ("salt", 12),
        ("iv", 12),
        ("ciphertext", len(PLAINTEXT)),
        ("tag", 16),
    )


def bare_message() -> Example:
    """Section 6: a message whose capsule is elsewhere."""
    return cut(
        message(KEYS, ROW),
        ("C1 12 suite", 3),
        ("key_id", 16),
        ("salt", 12),
        ("iv", 12),
        ("ciphertext", len(PLAINTEXT)),
        ("tag", 16),
    )


def stored_context() -> Example:
    """Section 6: the same plaintext with one pair stored and one supplied."""
    row = Context({"row": "7"})
    return cut(
        message(KEYS, SCOPE, row),
        ("C1 1A suite", 3),
        ("key_id", 16),
        ("salt", 12),
        ("iv", 12),
        ("ctx_len", 2),
        ("stored", len(row.encoded)),
        ("ciphertext", len(PLAINTEXT)),
        ("tag", 16),
    )


def two_segments() -> Example:
    """Section 7: the body of vector ``stream-segment-and-one``."""
    whole = stream(KEYS, chunk(SEGMENT + 1))
    fields = cut(
        whole,
        ("C1 13 suite log2", 4),
        ("key_id", 16),
        ("salt", 24),
        ("C_s", 32),
        ("0 iv", 12),
        ("0 ciphertext", SEGMENT),
        ("0 tag", 16),
        ("1 iv", 12),
        ("1 ciphertext", 1),
        ("1 tag", 16),
    )
    long = fields.pop("0 ciphertext")
    names = list(fields)
    at = names.index("0 tag")
    shown = {"0 ciphertext[0:32]": long[:32], "0 ciphertext[-32:]": long[-32:]}
    return {
        **{name: fields[name] for name in names[:at]},
        **shown,
        **{name: fields[name] for name in names[at:]},
        "SHA-256 of S": hashlib.sha256(whole).digest(),
    }


def two_of_three() -> Example:
    """Section 5: the capsule of the vectors ``threshold-2-of-3``."""
    holders = {1: kek(A), 2: kek(B), 3: kek(C)}
    parts = Shares.of(DEK, 2, [1, 2, 3], Pinned("share")).parts
    keys: list[tuple[str, bytes]] = [("KEK 2", kek(B).key), ("KEK 3", kek(C).key)]
    made = [(f"share {index}", bytes(part)) for index, part in parts.items()]
    checks = [(f"check {index}", share_check(part)) for index, part in parts.items()]
    wire = cut(
        capsule(KEYS, shares(KEYS, 2, holders), threshold=2),
        *CAPSULE_HEAD,
        *itertools.chain.from_iterable(
            one_recipient(str(number), uri) for number, uri in enumerate((A, B, C), 1)
        ),
        ("extensions", 1),
        ("type, len", 4),
        ("checks", 48),
        ("mac", 32),
    )
    coefficient = ("coefficient", Pinned("share")(32))
    return {**dict([*keys, coefficient, *made, *checks]), **wire}


def hpke_reference() -> Example:
    """Section 5: the key URI of a P-256 key, as ASCII."""
    public = bytes.fromhex(json.loads(HPKE_INPUTS.read_text())["0x0601"]["public"])
    digest = hashlib.sha256(public).digest()
    reference = b"hpke:" + base64.urlsafe_b64encode(digest[:16]).rstrip(b"=")
    return {"public key": public, "SHA-256": digest, "kek_ref": reference}


EXAMPLES: Mapping[str, Example] = {
    "key-schedule": key_schedule(),
    "maps": maps(),
    "wrap": wrap(),
    "hpke-reference": hpke_reference(),
    "capsule-and-message": capsule_and_message(),
    "bare-message": bare_message(),
    "stored-context": stored_context(),
    "two-segments": two_segments(),
    "two-of-three": two_of_three(),
}


def render(example: Example, width: int = 64) -> str:
    """As in the document: a name, and the bytes in hex over as many lines as they take."""
    margin = max(map(len, example)) + 2
    lines = []
    for name, data in example.items():
        text = data.hex()
        parts: Sequence[str] = [text[at : at + width] for at in range(0, len(text), width)] or [""]
        lines += [f"{name if not at else '':{margin}}{part}" for at, part in enumerate(parts)]
    return "\n".join(lines) + "\n"
