"""Wrapping and unwrapping, under symmetric keys and under RSA keys.

A symmetric key is what nearly everybody has, so a key is taken for one until the service objects:
that costs no further request and no permission to ask what the key is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from kms_aws.algorithms import OAEP, RSA_BYTES, SYMMETRIC_DEFAULT, WRAP_RSA, WRAP_SYMMETRIC, Kind
from kms_aws.answer import Answer
from kms_aws.errors import Fault, ciphertext_refused
from kms_aws.keys import Keys
from kms_aws.service import Service, fail
from kms_core import (
    Ciphertext,
    Context,
    DataKey,
    InvalidCiphertext,
    InvalidRequest,
    bind_context,
    unbind_context,
    wipe,
)

MAX_PLAINTEXT_BYTES: Final = 4096  # what Encrypt takes with a symmetric key
MAX_CIPHERTEXT_BYTES: Final = 6144  # what Decrypt takes
DATA_KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32  # what bind_context puts before a plaintext


class Wrapping:
    """What ``encrypt``, ``decrypt`` and ``generate_data_key`` do with a key of this instance."""

    def __init__(self, keys: Keys, service: Service) -> None:
        self._keys = keys
        self._service = service
        self._unwrappers: Mapping[int, Callable[[str, bytes, Context], bytes | bytearray]] = {
            WRAP_SYMMETRIC: self._unwrap_symmetric,
            WRAP_RSA: self._unwrap_rsa,
        }

    def wrap(self, key: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap ``plaintext``, bound to ``context``."""
        _check_plaintext(plaintext)
        outcome = self._symmetrically(
            "encrypt",
            key,
            Plaintext=plaintext,
            EncryptionAlgorithm=SYMMETRIC_DEFAULT,
            **_bound_to(context),
        )
        if isinstance(outcome, Kind):
            return self._wrap_rsa(key, outcome, plaintext, context)
        outcome.check_algorithm("EncryptionAlgorithm", SYMMETRIC_DEFAULT)
        return self._ciphertext(key, outcome, WRAP_SYMMETRIC)

    def data_key(self, key: str, context: Context) -> DataKey:
        """A fresh data key: drawn by the service, or here if the key cannot do it."""
        outcome = self._symmetrically(
            "generate_data_key", key, KeySpec="AES_256", **_bound_to(context)
        )
        if isinstance(outcome, Kind):
            drawn = bytearray(os.urandom(DATA_KEY_BYTES))
            return DataKey(drawn, self._wrap_rsa(key, outcome, drawn, context))
        plaintext = outcome.blob("Plaintext", DATA_KEY_BYTES, DATA_KEY_BYTES)
        return DataKey(plaintext, self._ciphertext(key, outcome, WRAP_SYMMETRIC))

    def unwrap(self, key: str, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        """Unwrap with exactly this key; ``InvalidCiphertext`` unless all three belong together."""
        if not isinstance(ciphertext.data, bytes | bytearray):
            raise InvalidRequest(f"a ciphertext is bytes, not {type(ciphertext.data).__name__}")
        unwrap = self._unwrappers.get(ciphertext.wrap_alg)
        if unwrap is None:
            raise ciphertext_refused(key)
        return unwrap(key, ciphertext.data, context)

    def _symmetrically(self, operation: str, key: str, **parameters: Any) -> Answer | Kind:
        """The answer, or what the key is if it is not symmetric."""
        kind = self._keys.known_kind(key)
        if kind is not None and kind.wrap_alg != WRAP_SYMMETRIC:
            return kind
        outcome = self._service.attempt(operation, key, **parameters)
        if isinstance(outcome, Answer):
            return outcome
        kind = self._keys.kind_behind(outcome, key)
        if kind.wrap_alg == WRAP_SYMMETRIC:
            fail(outcome)
        return kind

    def _wrap_rsa(
        self, key: str, kind: Kind, plaintext: bytes | bytearray, context: Context
    ) -> Ciphertext:
        key = self._keys.sent(key)  # by now the ARN of an alias is known
        if kind.wrap_alg != WRAP_RSA:
            raise InvalidRequest(f"key {key} is {kind} and wraps nothing; configure one that does")
        largest = kind.max_oaep_plaintext - DIGEST_BYTES
        if len(plaintext) > largest:
            raise InvalidRequest(
                f"{kind.spec} wraps 1 to {largest} bytes, not {len(plaintext)}; seal() takes more"
            )
        bound = bind_context(plaintext, context)
        try:
            answer = self._service.ask("encrypt", key, Plaintext=bound, EncryptionAlgorithm=OAEP)
        finally:
            wipe(bound)
        answer.check_algorithm("EncryptionAlgorithm", OAEP)
        size = RSA_BYTES[kind.spec]
        return self._ciphertext(key, answer, WRAP_RSA, size, size)

    def _unwrap_symmetric(self, key: str, blob: bytes, context: Context) -> bytes:
        if not 1 <= len(blob) <= MAX_CIPHERTEXT_BYTES:
            raise ciphertext_refused(key)
        answer = self._decrypted(key, blob, SYMMETRIC_DEFAULT, **_bound_to(context))
        return answer.blob("Plaintext", 1, MAX_PLAINTEXT_BYTES)

    def _unwrap_rsa(self, key: str, blob: bytes, context: Context) -> bytearray:
        if len(blob) not in RSA_BYTES.values():
            raise ciphertext_refused(key)
        answer = self._decrypted(key, blob, OAEP)
        bound = answer.blob("Plaintext", 0, MAX_PLAINTEXT_BYTES)
        try:
            plaintext = unbind_context(bound, context)
        except InvalidCiphertext:
            raise ciphertext_refused(key) from None
        if not plaintext:  # anybody can encrypt anything to a public key
            raise ciphertext_refused(key)
        return plaintext

    def _decrypted(self, key: str, blob: bytes, algorithm: str, **bound: Any) -> Answer:
        outcome = self._service.attempt(
            "decrypt", key, CiphertextBlob=blob, EncryptionAlgorithm=algorithm, **bound
        )
        if isinstance(outcome, Fault):
            if outcome.code == "InvalidKeyUsageException":
                # The envelope says how it was wrapped, and whoever altered that altered it.
                raise ciphertext_refused(key)
            fail(outcome)
        outcome.check_algorithm("EncryptionAlgorithm", algorithm)
        self._keys.recognised(key, outcome.arn("KeyId"))
        return outcome

    def _ciphertext(
        self,
        key: str,
        answer: Answer,
        wrap_alg: int,
        smallest: int = 1,
        largest: int = MAX_CIPHERTEXT_BYTES,
    ) -> Ciphertext:
        return Ciphertext(
            data=answer.blob("CiphertextBlob", smallest, largest),
            key_uri=self._keys.recognised(key, answer.arn("KeyId")).uri,
            key_version=answer.word("KeyMaterialId"),
            wrap_alg=wrap_alg,
        )


def _bound_to(context: Context) -> dict[str, Any]:
    return {"EncryptionContext": dict(context)} if context else {}


def _check_plaintext(plaintext: object) -> None:
    if not isinstance(plaintext, bytes | bytearray):
        raise InvalidRequest(f"a plaintext is bytes, not {type(plaintext).__name__}; encode it")
    if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
        raise InvalidRequest(
            f"AWS KMS wraps 1 to {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}; "
            "seal() takes more"
        )
