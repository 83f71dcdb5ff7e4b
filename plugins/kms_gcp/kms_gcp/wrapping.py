"""Wrapping and unwrapping, under symmetric keys and under RSA keys.

A symmetric key is what nearly everybody has, so a key is taken for one until the service objects:
that costs no further request and no permission to ask what the key is.  For an RSA key the service
only decrypts; encrypting to its public key is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from kms_core import (
    Ciphertext,
    Context,
    InvalidCiphertext,
    InvalidRequest,
    bind_context,
    unbind_context,
    wipe,
)
from kms_gcp.algorithms import RSA_BYTES, WRAP_RSA, WRAP_SYMMETRIC
from kms_gcp.answer import Answer, checked
from kms_gcp.errors import Fault, ciphertext_refused, fail
from kms_gcp.keys import Keys
from kms_gcp.names import KeyName
from kms_gcp.publickeys import PublicKeys, loaded
from kms_gcp.service import Service

MAX_PLAINTEXT_BYTES: Final = 4096  # the contract's; with a context it fits what Cloud HSM takes
MAX_CIPHERTEXT_BYTES: Final = 8192  # what an envelope holds
DIGEST_BYTES: Final = 32  # what bind_context puts before a plaintext

_AAD: Final = "additional_authenticated_data"
_OAEP: Final = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=None)


class Wrapping:
    """What ``encrypt`` and ``decrypt`` do with a key of this instance."""

    def __init__(self, keys: Keys, public_keys: PublicKeys, service: Service) -> None:
        self._keys = keys
        self._public_keys = public_keys
        self._service = service
        self._unwrappers: Mapping[int, Callable[[KeyName, bytes, Context], bytes | bytearray]] = {
            WRAP_SYMMETRIC: self._unwrap_symmetric,
            WRAP_RSA: self._unwrap_rsa,
        }

    def wrap(self, key: KeyName, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap ``plaintext``, bound to ``context``."""
        _check_plaintext(plaintext)
        known = self._keys.known(key)
        if known is None or known.wrap_alg == WRAP_SYMMETRIC:
            outcome = self._service.attempt(
                "Encrypt", key, **checked("plaintext", plaintext), **checked(_AAD, context.encoded)
            )
            if isinstance(outcome, Answer):
                return self._wrapped(outcome)
            if self._keys.behind(outcome, key).wrap_alg == WRAP_SYMMETRIC:
                fail(outcome)
        return self._wrap_rsa(key, plaintext, context)

    def unwrap(self, key: KeyName, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        """Unwrap with exactly this key; ``InvalidCiphertext`` unless all three belong together."""
        if not isinstance(ciphertext.data, bytes | bytearray):
            raise InvalidRequest(f"a ciphertext is bytes, not {type(ciphertext.data).__name__}")
        unwrap = self._unwrappers.get(ciphertext.wrap_alg)
        if unwrap is None:
            raise ciphertext_refused(key)
        return unwrap(key, bytes(ciphertext.data), context)

    def _wrapped(self, answer: Answer) -> Ciphertext:
        answer.check_received("plaintext", _AAD)
        version = answer.version()
        self._keys.note_symmetric(version)
        return Ciphertext(
            data=answer.blob("ciphertext", 1, MAX_CIPHERTEXT_BYTES),
            key_uri=version.uri,
            key_version=version.version,
            wrap_alg=WRAP_SYMMETRIC,
        )

    def _wrap_rsa(self, key: KeyName, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        version, algorithm = self._keys.in_use(key)
        if algorithm.wrap_alg != WRAP_RSA:
            raise InvalidRequest(f"{version} is {algorithm} and wraps nothing; configure another")
        largest = algorithm.max_oaep_plaintext - DIGEST_BYTES
        if len(plaintext) > largest:
            raise InvalidRequest(
                f"{algorithm} wraps 1 to {largest} bytes, not {len(plaintext)}; seal() takes more"
            )
        public: rsa.RSAPublicKey = loaded(self._public_keys.recent(version, algorithm))
        bound = bind_context(plaintext, context)
        try:
            data = public.encrypt(bytes(bound), _OAEP)
        finally:
            wipe(bound)
        return Ciphertext(data, version.uri, version.version, WRAP_RSA)

    def _unwrap_symmetric(self, key: KeyName, blob: bytes, context: Context) -> bytes:
        if not 1 <= len(blob) <= MAX_CIPHERTEXT_BYTES:
            raise ciphertext_refused(key)
        # Only the key is named: which version it was stands in the ciphertext.
        answer = self._decrypted(
            "Decrypt",
            key.parent,
            WRAP_SYMMETRIC,
            **checked("ciphertext", blob),
            **checked(_AAD, context.encoded),
        )
        self._keys.note_symmetric(key)
        plaintext = answer.blob("plaintext", 0, MAX_PLAINTEXT_BYTES)
        if not plaintext:  # the service wraps even nothing; this plugin does not
            raise ciphertext_refused(key)
        return plaintext

    def _unwrap_rsa(self, key: KeyName, blob: bytes, context: Context) -> bytearray:
        if key.version is None or len(blob) not in RSA_BYTES:
            raise ciphertext_refused(key)
        answer = self._decrypted("AsymmetricDecrypt", key, WRAP_RSA, **checked("ciphertext", blob))
        answer.check_received("ciphertext")
        bound = answer.blob("plaintext", 0, MAX_PLAINTEXT_BYTES)
        try:
            plaintext = unbind_context(bound, context)
        except InvalidCiphertext:
            raise ciphertext_refused(key) from None
        if not plaintext:  # anybody can encrypt anything to a public key
            raise ciphertext_refused(key)
        return plaintext

    def _decrypted(self, rpc: str, key: KeyName, wrap_alg: int, **fields: object) -> Answer:
        outcome = self._service.attempt(rpc, key, **fields)
        if isinstance(outcome, Fault):
            if outcome.status == "FAILED_PRECONDITION":
                self._check_kind(outcome, key, wrap_alg)
            fail(outcome)
        return outcome

    def _check_kind(self, fault: Fault, key: KeyName, wrap_alg: int) -> None:
        # The envelope says how it was wrapped, and whoever altered that altered it.
        if self._keys.behind(fault, key).wrap_alg != wrap_alg:
            raise ciphertext_refused(key)


def _check_plaintext(plaintext: object) -> None:
    if not isinstance(plaintext, bytes | bytearray):
        raise InvalidRequest(f"a plaintext is bytes, not {type(plaintext).__name__}; encode it")
    if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
        raise InvalidRequest(
            f"this plugin wraps 1 to {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}; "
            "seal() takes more"
        )
