"""The cryptography: key schedule, AES-256-GCM, and binding a context where a service cannot.

Constructions and labels are those of
docs/format.md, sections 2, 5 and 6: HKDF-Expand with SHA-512 (RFC 5869) and AES-256-GCM
(NIST SP 800-38D) with 12-byte IVs and 16-byte tags.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from collections.abc import Callable
from typing import Final, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.hmac import HMAC

from kms_core.context import Context
from kms_core.errors import IntegrityError, InvalidCiphertext, InvalidRequest

T = TypeVar("T")

SUITE_AES_256_GCM: Final = 0x01
DEK_BYTES: Final = 32
KEY_ID_BYTES: Final = 16
COMMIT_BYTES: Final = 32
IV_BYTES: Final = 12  # the size SP 800-38D section 8.2 recommends
TAG_BYTES: Final = 16

_LABEL: Final = b"kms_core/v1/"
_KEY_BYTES: Final = 32  # of every derived key
_DIGEST_BYTES: Final = 32
CPYTHON: Final = sys.implementation.name == "cpython"


def _midstate(key: bytes | bytearray | memoryview) -> HMAC:
    return HMAC(key, SHA512())


def _expand(prk: HMAC, label: bytes, info: bytes) -> bytes:
    """HKDF-Expand-SHA-512 to 64 bytes: one HMAC block, so shorter outputs are its prefixes."""
    block = prk.copy()
    block.update(_LABEL + label + b"\x00" + info + b"\x01")
    return block.finalize()


def _derived(prk: HMAC, label: bytes, info: bytes, use: Callable[[memoryview], T]) -> T:
    """What ``use`` makes of the key that the expansion begins with; the key itself is erased."""
    block = _expand(prk, label, info)
    try:
        return use(memoryview(block)[:_KEY_BYTES])
    finally:
        erase(block)


class Keys:
    """All that is derived from one DEK for one suite and scope.

    Holds HMAC midstates, not the DEK: what stays in memory cannot be turned back into it.  The
    caller wipes the DEK.
    """

    __slots__ = ("_capsule", "_message", "commitment", "scope", "suite")

    def __init__(
        self,
        dek: bytes | bytearray | memoryview,
        scope: Context,
        suite: int = SUITE_AES_256_GCM,
    ) -> None:
        if len(dek) != DEK_BYTES:
            raise IntegrityError
        bind = bytes((suite,)) + scope.encoded
        prk = _midstate(dek)
        self.suite = suite
        self.scope = scope
        self.commitment = _expand(prk, b"commit", bind)[:COMMIT_BYTES]
        self._capsule: HMAC | None = _derived(prk, b"capsule", bind, _midstate)
        self._message = _derived(prk, b"message", bind, _midstate)

    @property
    def key_id(self) -> bytes:
        """The name of the DEK: the first half of its commitment."""
        return self.commitment[:KEY_ID_BYTES]

    def commits_to(self, commitment: bytes) -> bool:
        """Whether this is the DEK that ``commitment`` names, in constant time."""
        return hmac.compare_digest(self.commitment, commitment)

    def capsule_mac(self, data: bytes) -> bytes:
        """The 32-byte MAC over a capsule's bytes; raises ``InvalidRequest`` once it is dropped."""
        if self._capsule is None:
            raise InvalidRequest(
                "these keys are for messages only: unlock the capsule again to change it"
            )
        mac = self._capsule.copy()
        mac.update(data)
        return mac.finalize()[:32]

    def drop_capsule_key(self) -> None:
        """Go on for messages only: what is kept from now on can make no capsule.  Idempotent."""
        self._capsule = None

    def stream(self, header: bytes, context: Context) -> tuple[StreamKey, bytes]:
        """The AEAD for a stream's segments, and its 32-byte commitment to key, header and context.

        ``header`` is the fixed header with the context block, if it has one.
        """
        block = _expand(self._message, b"stream", header + context.encoded)
        try:
            return StreamKey(memoryview(block)[:_KEY_BYTES]), block[_KEY_BYTES:]
        finally:
            erase(block)

    def one_shot(self, kind: int, salt: bytes) -> OneShot:
        """The AEAD for one-shot messages of this kind byte and salt."""
        return _derived(self._message, b"oneshot", bytes((kind,)) + salt, OneShot)


class OneShot:
    """AES-256-GCM under one message subkey."""

    __slots__ = ("aead",)

    def __init__(self, key: bytes | memoryview) -> None:
        #: The primitive itself, for whoever seals and opens many messages.
        self.aead = AESGCM(key)

    def encrypt(self, iv: bytes, plaintext: bytes, aad: bytes) -> bytes:
        """Ciphertext and tag."""
        return self.aead.encrypt(iv, plaintext, aad)

    def decrypt(self, iv: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        """The plaintext; raises ``IntegrityError`` unless everything authenticates."""
        try:
            return self.aead.decrypt(iv, ciphertext, aad)
        except InvalidTag:
            raise IntegrityError from None


class StreamKey:
    """AES-256-GCM under one stream's key, between buffers that the caller owns."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes | memoryview) -> None:
        self._aead = AESGCM(key)

    def encrypt_into(self, iv: bytes, chunk: memoryview, aad: bytes, into: memoryview) -> None:
        """Fill ``into`` with ciphertext and tag."""
        self._aead.encrypt_into(iv, chunk, aad, into)

    def decrypt_into(
        self, iv: bytes | memoryview, segment: memoryview, aad: bytes, into: memoryview
    ) -> None:
        """Fill ``into`` with plaintext; raises ``IntegrityError``, and what is in it is void."""
        try:
            self._aead.decrypt_into(iv, segment, aad, into)
        except InvalidTag:
            raise IntegrityError from None


def share_check(share: bytes | bytearray) -> bytes:
    """The 16 bytes by which a good share is told from a bad one."""
    return _expand(_midstate(share), b"share", b"")[:16]


def bind_context(plaintext: bytes | bytearray, context: Context) -> bytearray:
    """What a provider wraps when its service has no associated data.

    SHA-256 of the canonical context, then the plaintext: 32 bytes longer.
    """
    return bytearray(hashlib.sha256(context.encoded).digest()) + plaintext


def unbind_context(bound: bytes | bytearray, context: Context) -> bytearray:
    """Undo ``bind_context``; raises ``InvalidCiphertext`` if it was bound to another context."""
    expected = hashlib.sha256(context.encoded).digest()
    if not hmac.compare_digest(bytes(bound[:_DIGEST_BYTES]), expected):
        raise InvalidCiphertext("authentication failed")
    return bytearray(memoryview(bound)[_DIGEST_BYTES:])  # a slice of bytes would be a copy more


def random_key() -> bytearray:
    """A fresh DEK, of which there is no other copy; the caller wipes it."""
    drawn = os.urandom(DEK_BYTES)
    key = bytearray(drawn)
    erase(drawn)
    return key


def wipe(secret: object) -> None:
    """Zero a bytearray in place; anything else is left alone, so whoever got it may pass it."""
    if isinstance(secret, bytearray):
        secret[:] = bytes(len(secret))


def erase(secret: bytes | bytearray | memoryview) -> None:
    """Zero a secret in place, immutable ``bytes`` too.

    Only for an object that the caller alone holds, such as what an SDK has just returned: it
    changes for everybody.  Never for literals or dictionary keys.  ``bytes`` of no or one byte,
    which CPython shares, and those of other interpreters are left alone.
    """
    if not isinstance(secret, bytes):
        memoryview(secret).cast("B")[:] = bytes(memoryview(secret).nbytes)
    elif CPYTHON and len(secret) > 1:
        import ctypes  # not before it is needed: cryptography does without

        # The bytes stand at the end of the object, before a terminating zero.
        ctypes.memset(id(secret) + bytes.__basicsize__ - 1, 0, len(secret))
