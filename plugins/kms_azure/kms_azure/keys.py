"""What the service tells about one version of a key, and for how long that is believed.

A key without a version stands for the current one, and that changes: it is asked for once and kept
for a while, so that sealing costs one request and a rotation is noticed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Self

from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms_azure.algorithms import PERMITTED_AS, Family, signature_algorithms
from kms_azure.answer import Answer, malformed
from kms_azure.names import VaultKey
from kms_core import InvalidRequest, KeyDisabled, KeyState

MAX_REMEMBERED: Final = 64  # versions; a foreign signature may name any version there never was

_FAMILIES: Final[Mapping[str, Family]] = {
    "RSA": "RSA",
    "RSA-HSM": "RSA",
    "EC": "EC",
    "EC-HSM": "EC",
    "oct": "oct",
    "oct-HSM": "oct",
}
_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-256K": ec.SECP256K1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}


@frozen
class Validity:
    """Whether a version may be used, and from when to when."""

    enabled: bool
    not_before: int | None
    expires: int | None

    @classmethod
    def of(cls, attributes: Answer) -> Self:
        """From what the service calls the attributes of a version."""
        return cls(attributes.flag("enabled"), attributes.moment("nbf"), attributes.moment("exp"))

    def state(self, now: float) -> tuple[KeyState, str]:
        """Its state at this moment, and the same in words."""
        if not self.enabled:
            return "disabled", "disabled"
        if self.expires is not None and now >= self.expires:
            return "disabled", "expired"
        if self.not_before is not None and now < self.not_before:
            return "pending", "not valid yet"
        return "enabled", "enabled"


@frozen
class KeyFacts:
    """One version of a key as the service describes it."""

    key: VaultKey
    type: str
    family: Family
    curve: str | None
    operations: frozenset[str]
    validity: Validity
    web_key: Answer = field(repr=False)

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """From the answer to a question about a key."""
        web_key = answer.inside("key")
        kind = web_key.text("kty")
        if (family := _FAMILIES.get(kind)) is None:
            malformed(answer.key, "kty")
        return cls(
            key=web_key.kid(),
            type=kind,
            family=family,
            curve=web_key.text("crv") if family == "EC" else None,
            operations=web_key.words("key_ops"),
            validity=Validity.of(answer.inside("attributes")),
            web_key=web_key,
        )

    @property
    def in_hsm(self) -> bool:
        """Whether the key never leaves an HSM."""
        return self.type.endswith("-HSM")

    @property
    def signs_with(self) -> Mapping[str, str]:
        """The signature algorithms of such a key: the service's name by ours."""
        return signature_algorithms(self.family, self.curve)

    @property
    def rsa_bytes(self) -> int:
        """The length of an RSA key's blocks and signatures."""
        return len(self.web_key.octets("n").lstrip(b"\0"))

    @property
    def curve_bytes(self) -> int:
        """The length of either half of an EC key's signatures."""
        return (_CURVES[self.curve or ""].key_size + 7) // 8

    def permits(self, operation: str) -> bool:
        """Whether ``key_ops`` have it."""
        return PERMITTED_AS.get(operation, operation) in self.operations

    def check_usable(self, operation: str, now: float) -> None:
        """Raise unless this key may make something new with ``operation`` at this moment."""
        state, word = self.validity.state(now)
        if state != "enabled":
            raise KeyDisabled(
                f"key {self.key} is {word}; enable it, change its dates, or use another key"
            )
        if not self.permits(operation):
            raise KeyDisabled(
                f"key {self.key} does not permit {operation}; add it to the key's operations"
            )

    def public_der(self) -> bytes:
        """The public key as SubjectPublicKeyInfo."""
        if self.family == "oct":
            raise InvalidRequest(f"key {self.key} is symmetric: it has no public key")
        try:
            public = self._public_key()
        except ValueError:
            malformed(self.key, "public key")
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def _public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        jwk = self.web_key
        if self.family == "RSA":
            return rsa.RSAPublicNumbers(jwk.number("e"), jwk.number("n")).public_key()
        curve = _CURVES.get(self.curve or "")
        if curve is None:
            raise ValueError(self.curve)
        return ec.EllipticCurvePublicNumbers(jwk.number("x"), jwk.number("y"), curve).public_key()


@frozen
class _Remembered:
    facts: KeyFacts
    until: float


class KnownKeys:
    """Facts about keys, each asked for when first needed and again when it is too old."""

    def __init__(
        self,
        ask: Callable[[VaultKey], KeyFacts],
        max_age: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._max_age = max_age
        self._clock = clock
        self._lock = threading.Lock()
        self._remembered: dict[VaultKey, _Remembered] = {}

    def facts(self, key: VaultKey) -> KeyFacts:
        """What is known about the key, or about its current version."""
        known = self._remembered.get(key)
        if known is not None and self._clock() < known.until:
            return known.facts
        facts = self._ask(key)
        with self._lock:
            while len(self._remembered) >= MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = _Remembered(facts, self._clock() + self._max_age)
        return facts

    def forget(self, key: VaultKey) -> None:
        """Ask again next time."""
        with self._lock:
            self._remembered.pop(key, None)
