"""Envelopes that open, made from pinned randomness, and the key services that open them.

The services err on the side of the attacker: a reader that is safe with them is safe with others.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from typing import ClassVar, Final

from attrs import define, evolve, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_core import Ciphertext, Context, InvalidCiphertext, KeyNotFound, hookimpl
from kms_core.aead import Keys
from kms_core.envelope import (
    Accept,
    Shares,
    Wrapped,
    new_capsule,
    seal_message,
    sign_capsule,
    start_stream,
)
from kms_core.errors import IntegrityError, NoMatchingRecipient
from kms_core.header import Recipient, parse_capsule
from kms_core.types import Protection
from tests.support import router_for

CONTEXT: Final = Context({"tenant": "t1", "row": "7"})
STORED: Final = Context({"column": "ssn", "table": "people"})
WRAP_ALG: Final = 0x0501
SEGMENT_LOG2: Final = 12
URIS: Final = tuple(f"local://fuzz/{name}/1" for name in ("one", "three", "two"))
MAX_BAD_UNWRAPS: Final = 4  # docs/format.md, section 8


class Pinned:
    """A random source that always draws the same for the same label."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._drawn = 0

    def __call__(self, size: int) -> bytes:
        self._drawn += 1
        return hashlib.shake_256(f"{self._label} {self._drawn}".encode()).digest(size)


def kek(uri: str) -> AESGCM:
    """The key behind a URI."""
    return AESGCM(hashlib.sha256(uri.encode()).digest())


def _wrap(uri: str, secret: bytes | bytearray, context: Context) -> Ciphertext:
    iv = Pinned(f"wrap {uri}")(12)
    blob = iv + kek(uri).encrypt(iv, bytes(secret), context.encoded)
    return Ciphertext(blob, uri, wrap_alg=WRAP_ALG)


# --- envelopes -----------------------------------------------------------------------------------


@frozen
class Sealed:
    """One data key: the capsules that give it away, and the bodies under it."""

    name: str
    capsules: Mapping[str, bytes]
    bodies: Mapping[str, bytes]
    plaintexts: Mapping[str, bytes]
    #: What each recipient holds, by key URI: the data key, or a share of it.
    secrets: Mapping[str, bytes] = field(repr=False)


def _plaintexts() -> dict[str, tuple[bytes, Context | None]]:
    long = bytes((7 * position) & 0xFF for position in range(5000))
    return {
        "message": (b"hello, envelope", None),
        "message-empty": (b"", None),
        "message-long": (long[:2000], None),
        "message-stored": (b"with a stored context", STORED),
        "stream": (long, None),
        "stream-empty": (b"", None),
        "stream-full": (long[: 1 << SEGMENT_LOG2], None),
        "stream-stored": (b"a stream with a stored context", STORED),
    }


def _body(keys: Keys, name: str, plaintext: bytes, stored: Context | None, label: str) -> bytes:
    random = Pinned(f"{label} {name}")
    if name.startswith("message"):
        return seal_message(keys, plaintext, CONTEXT, stored, random)
    sink = io.BytesIO()
    with start_stream(
        sink, keys, CONTEXT, stored, segment_log2=SEGMENT_LOG2, random=random
    ) as writer:
        writer.write(plaintext)
    return sink.getvalue()


def _sealed(name: str, scope: Context, uris: Sequence[str], threshold: int = 1) -> Sealed:
    dek = Pinned(f"dek {name}")(32)
    keys = Keys(dek, scope)
    indexes = [0] * len(uris) if threshold == 1 else range(1, len(uris) + 1)
    shares = Shares.of(dek, threshold, sorted(set(indexes)), Pinned(f"shares {name}"))
    wraps = [
        shares.wrapped(_wrap(uri, *shares.bound(keys, index)), index)
        for uri, index in zip(uris, indexes, strict=True)
    ]
    plaintexts = _plaintexts()
    return Sealed(
        name,
        capsules=_capsules(keys, wraps, threshold),
        bodies={kind: _body(keys, kind, *parts, name) for kind, parts in plaintexts.items()},
        plaintexts={kind: plaintext for kind, (plaintext, _) in plaintexts.items()},
        secrets={uri: bytes(shares.parts[index]) for uri, index in zip(uris, indexes, strict=True)},
    )


def _capsules(keys: Keys, wraps: Sequence[Wrapped], threshold: int) -> dict[str, bytes]:
    """The first one, and a later generation of it that has every extension."""
    plain = new_capsule(keys, wraps, threshold=threshold)
    full = evolve(
        parse_capsule(plain),
        generation=1,
        missing=("azure-keyvault://vault.example/keys/k", "other-kms://somewhere"),
        created=1_700_000_000,
        padding=40,
        unknown=((0x0100, b"kept"), (0x4100, b"dropped by a rewrap")),
    )
    return {"plain": plain, "full": sign_capsule(full, keys)}


@cache
def sealed() -> tuple[Sealed, ...]:
    """All that opens: under a scope, without one, and where two of three are needed."""
    scope = Context({"tenant": "t1"})
    return (
        _sealed("scoped", scope, URIS),
        _sealed("bare", Context(), URIS[:1]),
        _sealed("two-of-three", scope, URIS, threshold=2),
    )


@cache
def openable() -> Mapping[tuple[bytes, bytes], bytes]:
    """The plaintext of each capsule with each body that belongs to it."""
    return {
        (capsule, body): item.plaintexts[kind]
        for item in sealed()
        for capsule, (kind, body) in product(item.capsules.values(), item.bodies.items())
    }


@cache
def stored_capsules() -> Mapping[bytes, bytes]:
    """What a capsule store holds: the newest of each key."""
    capsules = [item.capsules["full"] for item in sealed()]
    return {parse_capsule(capsule).key_id: capsule for capsule in capsules}


@cache
def crowded() -> Sequence[bytes]:
    """Capsules of strangers, for whose many recipients one of our services feels responsible."""
    template = parse_capsule(sealed()[0].capsules["plain"])
    shared = parse_capsule(sealed()[2].capsules["plain"])
    crowd = tuple(
        Recipient(f"local://fuzz/crowd/{number:02}", WRAP_ALG, Pinned(f"crowd {number}")(60))
        for number in range(12)
    )
    holders = tuple(
        evolve(recipient, share_index=index, share_check=bytes(16))
        for index, recipient in enumerate((*crowd, *shared.recipients), 1)
    )
    made = (
        evolve(template, recipients=(*crowd, *template.recipients)),
        evolve(shared, recipients=holders, threshold=2),
        evolve(shared, recipients=holders, threshold=7),
    )
    return [capsule.unsigned() + bytes(32) for capsule in made]


# --- services ------------------------------------------------------------------------------------


@define
class Bill:
    """What key services were asked for while one envelope was opened."""

    opens: int = 0
    calls: int = 0
    bad: int = 0
    threshold: int = 0


class Vault:
    """Every key, in this thread: an ``Unwrap`` that keeps a bill.

    ``blind`` returns what a recipient once held, whatever its blob or context is now: then nothing
    but the commitment and the MAC stands between a forger and the plaintext.
    """

    def __init__(self, *, blind: bool) -> None:
        self._blind = blind
        self.bill = Bill()

    def __call__(
        self,
        wraps: Sequence[tuple[Ciphertext, Context]],
        accept: Accept,
        *,
        threshold: int,
        capsule: bytes,
    ) -> Keys:
        """Ask for one wrap after the other, as far as docs/format.md, section 9, allows."""
        self.bill.opens += 1
        self.bill.threshold = threshold
        ours = [bound for bound in wraps if bound[0].key_uri in URIS]
        if not ours:
            raise NoMatchingRecipient([ciphertext.key_uri for ciphertext, _ in wraps])
        for ciphertext, context in ours:
            self.bill.calls += 1
            try:
                keys = accept(ciphertext, self._unwrap(ciphertext, context))
            except InvalidCiphertext:
                self.bill.bad += 1
                continue
            if keys is not None:
                return keys
        raise IntegrityError

    def _unwrap(self, ciphertext: Ciphertext, context: Context) -> bytearray:
        if not self._blind:
            return unwrap(ciphertext, context)
        key_id = bytes.fromhex(context["kms_core:kid"])
        for item, capsule in zip(sealed(), stored_capsules(), strict=True):
            if capsule == key_id and ciphertext.key_uri in item.secrets:
                return bytearray(item.secrets[ciphertext.key_uri])
        raise InvalidCiphertext("authentication failed")


def unwrap(ciphertext: Ciphertext, context: Context) -> bytearray:
    """What a blob holds, if it was made under the key that its URI names, and this context."""
    iv, blob = ciphertext.data[:12], ciphertext.data[12:]
    try:
        return bytearray(kek(ciphertext.key_uri).decrypt(iv, blob, context.encoded))
    except (InvalidTag, ValueError):
        raise InvalidCiphertext("authentication failed") from None


class Greedy:
    """A provider that takes every ``local:`` key for its own, and so can be made to work most."""

    type_name: ClassVar[str] = "local"
    wrap_algs: ClassVar[frozenset[int]] = frozenset({WRAP_ALG})
    protection: Protection = "local"
    key_uri: str = URIS[0]

    def __init__(self, bill: Bill) -> None:
        self._bill = bill

    def match(self, key_uri: str) -> str | None:
        """All are mine."""
        return key_uri

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        """As a service with associated data does."""
        self._bill.calls += 1
        return unwrap(ciphertext, context)


class Routed:
    """The library's own router in front of ``Greedy``: an ``Unwrap`` that keeps a bill."""

    def __init__(self) -> None:
        self.bill = Bill()

    def __call__(
        self,
        wraps: Sequence[tuple[Ciphertext, Context]],
        accept: Accept,
        *,
        threshold: int,
        capsule: bytes,
    ) -> Keys:
        """A router for this one open, so that no breaker remembers the one before."""
        self.bill.opens += 1
        self.bill.threshold = threshold
        good = 0

        def counted(ciphertext: Ciphertext, part: bytes | bytearray) -> Keys | None:
            nonlocal good
            keys = accept(ciphertext, part)
            good += 1
            return keys

        try:
            with router_for({"greedy": Greedy(self.bill)}) as router:
                return router.unwrap(wraps, counted, threshold=threshold)
        finally:
            self.bill.bad = self.bill.calls - good


def find_capsule(key_id: bytes) -> bytes:
    """The store's capsule of this key."""
    try:
        return stored_capsules()[key_id]
    except KeyError:
        raise KeyNotFound("no such capsule") from None
