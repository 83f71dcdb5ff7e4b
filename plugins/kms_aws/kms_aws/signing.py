"""Signing and verifying, by signature or by MAC, and telling the public key.

The service takes messages of up to 4096 bytes.  Of longer ones it is sent the digest, or what
ML-DSA makes of them; for Ed25519 and MACs there is nothing shorter to send.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen

from kms_aws.algorithms import (
    MAC_SCHEMES,
    MAX_MESSAGE_BYTES,
    ML_DSA_BYTES,
    SCHEMES,
    Kind,
    Message,
    fits,
    represented,
    represented_ml_dsa,
)
from kms_aws.answer import Answer
from kms_aws.errors import NOT_AUTHENTIC, Fault
from kms_aws.keys import Keys
from kms_aws.service import Service, fail
from kms_core import InvalidRequest, PublicKey, Signature

MAX_SIGNATURE_BYTES: Final = 6144  # what Verify takes
MAX_PUBLIC_KEY_BYTES: Final = 8192  # what GetPublicKey answers at most


@frozen
class _Words:
    """What the service calls the same things for signatures and for MACs."""

    make: str
    check: str
    algorithm: str
    result: str
    valid: str


_SIGNATURES: Final = _Words("sign", "verify", "SigningAlgorithm", "Signature", "SignatureValid")
_MACS: Final = _Words("generate_mac", "verify_mac", "MacAlgorithm", "Mac", "MacValid")


@frozen
class _Order:
    """What to sign or check, as the service wants it, and how long the result may be."""

    words: _Words
    algorithm: str
    message: dict[str, Any]
    smallest: int = 1
    largest: int = MAX_SIGNATURE_BYTES

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that both directions have."""
        return {self.words.algorithm: self.algorithm, **self.message}


class Signing:
    """What ``sign``, ``verify`` and ``public_key`` do with a key of this instance."""

    def __init__(self, keys: Keys, service: Service) -> None:
        self._keys = keys
        self._service = service
        self._ml_dsa_keys: dict[str, bytes] = {}

    def sign(self, key: str, data: bytes, algorithm: str) -> Signature:
        """A signature or a MAC of ``data``."""
        order = self._order(key, data, algorithm)
        if order is None:
            raise InvalidRequest(
                f"AWS KMS takes 1 to {MAX_MESSAGE_BYTES} bytes for {algorithm}, not {len(data)}; "
                "use a digest of the message in its place"
            )
        outcome = self._service.attempt(order.words.make, key, **order.parameters)
        answer = self._answer(outcome, key, algorithm)
        answer.check_algorithm(order.words.algorithm, order.algorithm)
        return Signature(
            data=answer.blob(order.words.result, order.smallest, order.largest),
            key_uri=self._keys.recognised(key, answer.arn("KeyId")).uri,
            algorithm=algorithm,
        )

    def verify(self, key: str, data: bytes, signature: bytes, algorithm: str) -> bool:
        """Whether the service accepts ``signature``."""
        order = self._order(key, data, algorithm)
        if not isinstance(signature, bytes | bytearray):
            raise InvalidRequest(f"a signature is bytes, not {type(signature).__name__}")
        if order is None or not order.smallest <= len(signature) <= order.largest:
            return False  # the service makes no such signature
        outcome = self._service.attempt(
            order.words.check, key, **{order.words.result: signature}, **order.parameters
        )
        if isinstance(outcome, Fault) and outcome.code in NOT_AUTHENTIC:
            return False
        answer = self._answer(outcome, key, algorithm)
        answer.check_algorithm(order.words.algorithm, order.algorithm)
        self._keys.recognised(key, answer.arn("KeyId"))
        return answer.flag(order.words.valid)

    def public_key(self, key: str) -> PublicKey:
        """The public key, and all that the service does with it."""
        kind = self._keys.known_kind(key)
        if kind is not None and not kind.has_public_key:
            raise _no_public_key(key, kind)
        outcome = self._service.attempt("get_public_key", key)
        if isinstance(outcome, Fault):
            kind = self._keys.kind_behind(outcome, key)
            if kind.has_public_key:
                fail(outcome)
            raise _no_public_key(key, kind)
        arn = self._keys.recognised(key, outcome.arn("KeyId"))
        kind = self._keys.note_kind(arn, outcome)
        if not kind.has_public_key:
            raise _no_public_key(key, kind)
        der = outcome.blob("PublicKey", 1, MAX_PUBLIC_KEY_BYTES)
        if not _is_public_key(der):
            raise outcome.malformed("PublicKey")
        return PublicKey(der, arn.uri, algorithms=kind.algorithms, wrap_alg=kind.wrap_alg)

    def _order(self, key: str, data: bytes, algorithm: str) -> _Order | None:
        """``None`` if the service takes no such message for this algorithm."""
        if not isinstance(data, bytes | bytearray):
            raise InvalidRequest(f"a message is bytes, not {type(data).__name__}; encode it")
        if algorithm not in SCHEMES and algorithm not in MAC_SCHEMES:
            raise InvalidRequest(
                f"AWS KMS does not sign with {algorithm!r}; it has "
                f"{', '.join([*SCHEMES, *MAC_SCHEMES])}"
            )
        self._check_kind(key, algorithm)
        if mac := MAC_SCHEMES.get(algorithm):
            whole = {"Message": data}
            return _Order(_MACS, mac.name, whole, mac.size, mac.size) if fits(data) else None
        message = self._message(key, data, algorithm)
        if message is None:
            return None
        sent = {"Message": message.data, "MessageType": message.type}
        return _Order(_SIGNATURES, SCHEMES[algorithm].name, sent)

    def _message(self, key: str, data: bytes, algorithm: str) -> Message | None:
        if algorithm in ML_DSA_BYTES:
            return represented_ml_dsa(data, algorithm, self._ml_dsa_key(key, algorithm))
        digest = SCHEMES[algorithm].digest
        if digest is not None:
            return represented(data, digest)
        return Message(data, "RAW") if fits(data) else None

    def _ml_dsa_key(self, key: str, algorithm: str) -> bytes:
        """The public key, which also tells the parameter set: requests do not name it."""
        known = self._ml_dsa_keys.get(key)
        if known is None:
            known = self.public_key(key).der
            key = self._keys.sent(key)  # by now the ARN of an alias is known
            self._ml_dsa_keys[key] = known
        self._check_kind(key, algorithm)
        return known

    def _answer(self, outcome: Answer | Fault, key: str, algorithm: str) -> Answer:
        """Raises unless the service did it, and says so if it cannot be done with this key."""
        if isinstance(outcome, Fault):
            _check_algorithm(key, self._keys.kind_behind(outcome, key), algorithm)
            fail(outcome)
        return outcome

    def _check_kind(self, key: str, algorithm: str) -> None:
        kind = self._keys.known_kind(key)
        if kind is not None:
            _check_algorithm(key, kind, algorithm)


def _check_algorithm(key: str, kind: Kind, algorithm: str) -> None:
    if algorithm not in kind.algorithms:
        has = ", ".join(kind.algorithms) or "no algorithm to sign with"
        raise InvalidRequest(f"key {key} is {kind} and has {has}, not {algorithm}")


def _no_public_key(key: str, kind: Kind) -> InvalidRequest:
    return InvalidRequest(f"key {key} is {kind}: there is no public key to use")


def _is_public_key(der: bytes) -> bool:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        load_der_public_key(der)
    except UnsupportedAlgorithm:
        return True  # of a kind that only this host does not know
    except (TypeError, ValueError):
        return False
    return True
