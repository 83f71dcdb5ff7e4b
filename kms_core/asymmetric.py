"""What is done with public keys here, without asking the service that holds the private ones.

Verifying signatures, and wrapping data keys for an instance whose service cannot be reached or
need not be asked (docs/adr/0008).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from kms_core.aead import bind_context, erase, wipe
from kms_core.context import Context
from kms_core.errors import BreakerOpen, InvalidRequest, KMSError, Throttled, Unavailable
from kms_core.types import RSA_OAEP, Ciphertext, PublicKey

OfflineWrap = Literal["never", "fallback", "always"]

#: How long, in seconds, a public key is used to wrap before the service is asked for the current
#: one; while the service is down it is used for as long as that takes.
PUBLIC_KEY_MAX_AGE: Final = 3600.0

MIN_RSA_BITS: Final = 2048  # NIST SP 800-131A

_HASHES: Final[Mapping[str, HashAlgorithm]] = {
    "SHA256": SHA256(),
    "SHA384": SHA384(),
    "SHA512": SHA512(),
}
#: A service that is out of reach, as opposed to one that refused.
_OUTAGE: Final = (Unavailable, Throttled, BreakerOpen)


def verify_signature(public_key: PublicKey, data: bytes, signature: bytes, algorithm: str) -> bool:
    """Whether ``signature`` is one of ``data`` under ``public_key``.

    Raises ``InvalidRequest`` if ``algorithm`` is none of this key's, and cryptography's
    ``UnsupportedAlgorithm`` if it is none of this host's.
    """
    if algorithm not in public_key.algorithms:
        has = ", ".join(public_key.algorithms) or "no signature algorithm"
        raise InvalidRequest(f"key {public_key.key_uri} has {has}, not {algorithm}")
    key = _load(public_key.der)
    try:
        _check(key, data, signature, algorithm)
    except InvalidSignature:
        return False
    return True


def _check(key: Any, data: bytes, signature: bytes, algorithm: str) -> None:
    """Raises ``InvalidSignature`` unless it verifies; a key of another kind never does."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    family, _, hash_name = algorithm.rpartition("-")
    match family, key:
        case "ECDSA", ec.EllipticCurvePublicKey():
            key.verify(signature, data, ec.ECDSA(_HASHES[hash_name]))
        case "RSA-PSS", rsa.RSAPublicKey():
            digest = _HASHES[hash_name]
            pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
            key.verify(signature, data, pss, digest)
        case "RSA-PKCS1", rsa.RSAPublicKey():
            key.verify(signature, data, padding.PKCS1v15(), _HASHES[hash_name])
        case "", ed25519.Ed25519PublicKey():
            key.verify(signature, data)
        case "ML-DSA", _ if isinstance(key, _ml_dsa(hash_name)):
            key.verify(signature, data)
        case _:
            raise InvalidSignature


def _ml_dsa(size: str) -> type[Any]:
    from cryptography.hazmat.primitives.asymmetric import mldsa

    kind: type[Any] = getattr(mldsa, f"MLDSA{size}PublicKey")
    return kind


def _load(der: bytes) -> Any:
    # Public keys are for few clients: the others do without what reads them.
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    return load_der_public_key(der)


def can_load(der: bytes) -> bool:
    """Whether ``der`` is a public key, or of a kind that only this host does not know."""
    try:
        _load(der)
    except UnsupportedAlgorithm:
        return True
    except (TypeError, ValueError):
        return False
    return True


class OfflineWrapper:
    """Wraps data keys for one instance with its public key, as far as its policy allows.

    ``never``: not at all.  ``fallback``: when the service is out of reach.  ``always``: instead of
    asking it.  Thread-safe; holds public keys only.
    """

    def __init__(self, policy: OfflineWrap, clock: Callable[[], float]) -> None:
        self.policy: Final = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._encrypt: Callable[[bytes], bytes] | None = None
        self._key: PublicKey | None = None
        self._learnt = 0.0
        self._learning = False
        self._asked_in_vain: float | None = None

    def learn(self, public_key: PublicKey) -> None:
        """Use this key from now on; raises ``InvalidRequest`` if it is not one to wrap to."""
        from cryptography.hazmat.primitives.asymmetric import padding, rsa

        key = _load(public_key.der)
        fits = public_key.wrap_alg is not None and RSA_OAEP in public_key.algorithms
        if not (fits and isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS):
            self._asked_in_vain = self._clock()
            raise InvalidRequest(
                f"key {public_key.key_uri} does not take {RSA_OAEP} with {MIN_RSA_BITS} bits or "
                "more, so nothing is wrapped to it offline: remove offline_wrap from this instance"
            )
        oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=None)
        with self._lock:
            self._encrypt, self._key = partial(key.encrypt, padding=oaep), public_key
            self._learnt, self._learning = self._clock(), False

    def begin_learning(self) -> bool:
        """Whether the caller is to ask for the public key now; nobody else is told so meanwhile."""
        if self.policy == "never" or self._is_fresh() or self._is_unfit():
            return False
        with self._lock:
            begun, self._learning = not self._learning, True
        return begun

    def give_up_learning(self) -> None:
        """The key could not be had; let the next caller try."""
        self._learning = False

    def instead(self) -> bool:
        """Whether to wrap here rather than ask the service."""
        return self.policy == "always" and self._is_fresh()

    def after(self, error: KMSError) -> bool:
        """Whether to wrap here now that the service failed with ``error``."""
        known = self.policy != "never" and self._key is not None
        return known and isinstance(error, _OUTAGE)

    def wrap(self, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """``plaintext`` wrapped to the key, bound to ``context``; costs no request."""
        encrypt, key = self._encrypt, self._key
        if encrypt is None or key is None or key.wrap_alg is None:
            raise InvalidRequest("no public key is known yet: warm up while the service is there")
        bound = bind_context(plaintext, context)
        taken = bytes(bound)  # all that cryptography takes
        try:
            wrapped = encrypt(taken)
        finally:
            wipe(bound)
            erase(taken)
        return Ciphertext(wrapped, key.key_uri, key.key_version, key.wrap_alg)

    def _is_fresh(self) -> bool:
        return self._key is not None and self._clock() - self._learnt < PUBLIC_KEY_MAX_AGE

    def _is_unfit(self) -> bool:
        """Whether the key was found to be of no use not long ago."""
        asked = self._asked_in_vain
        return asked is not None and self._clock() - asked < PUBLIC_KEY_MAX_AGE
