"""How data keys are wrapped under a key of the token: AES-GCM, AES-KWP or RSA-OAEP."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from kms_core import (
    Context,
    InvalidRequest,
    Unavailable,
    bind_context,
    erase,
    unbind_context,
    wipe,
)
from kms_pkcs11.errors import refused
from kms_pkcs11.sessions import ObjectKind, Session
from kms_pkcs11.settings import Pkcs11Settings
from kms_pkcs11.uri import KeyName

KWP, GCM, OAEP_SHA256, OAEP_SHA1 = 0x0401, 0x0402, 0x0403, 0x0404

MAX_PLAINTEXT_BYTES: Final = 4096
IV_BYTES: Final = 12
TAG_BYTES: Final = 16
_DIGEST_BYTES: Final = 32
_BLOCK: Final = 8
_OUTPUT_BYTES: Final = 8192  # of the buffer in which python-pkcs11 receives what was decrypted


class Wrapping(Protocol):
    """One way to wrap.  The methods raise what python-pkcs11 raises."""

    wrap_alg: int
    kind: ObjectKind  # of the key that unwraps

    def check(self, size: int) -> None:
        """Raises ``InvalidRequest`` unless it takes plaintexts of this size."""

    def wrap(
        self, session: Session, name: KeyName, plaintext: bytes | bytearray, context: Context
    ) -> bytes:
        """The blob."""

    def unwrap(self, session: Session, name: KeyName, blob: bytes, context: Context) -> bytearray:
        """What is in it."""

    def fits(self, blob: bytes) -> bool:
        """Whether a blob of this length can be one of its own."""


class AesGcm:
    """IV, ciphertext and tag; the canonical context is the associated data."""

    wrap_alg = GCM
    kind: ObjectKind = "SECRET_KEY"

    def __init__(self, settings: Pkcs11Settings) -> None:
        self._iv_from = settings.gcm_iv
        self._number = settings.gcm_mechanism

    def check(self, size: int) -> None:
        """From 1 to 4096 bytes."""
        _check_size(size, MAX_PLAINTEXT_BYTES)

    def fits(self, blob: bytes) -> bool:
        """At least one byte of ciphertext."""
        return IV_BYTES + TAG_BYTES < len(blob) <= IV_BYTES + MAX_PLAINTEXT_BYTES + TAG_BYTES

    def wrap(
        self, session: Session, name: KeyName, plaintext: bytes | bytearray, context: Context
    ) -> bytes:
        """With an IV made by whom the settings say."""
        key = session.key(name, self.kind)
        if self._iv_from == "appended":
            made = self._encrypt(session, key, b"", plaintext, context)
            sealed, iv = made[:-IV_BYTES], made[-IV_BYTES:]
        else:
            # A bytes object of its own: CloudHSM writes the IV it drew into this very buffer.
            iv = bytes(bytearray(IV_BYTES)) if self._iv_from == "module" else os.urandom(IV_BYTES)
            sealed = self._encrypt(session, key, iv, plaintext, context)
        if len(sealed) != len(plaintext) + TAG_BYTES or not any(iv):
            raise Unavailable(
                "the module made no AES-GCM ciphertext of the expected form; see gcm_iv"
            )
        return iv + sealed

    def unwrap(self, session: Session, name: KeyName, blob: bytes, context: Context) -> bytearray:
        """Authenticated by the token."""
        key = session.key(name, self.kind)
        iv, sealed = blob[:IV_BYTES], blob[IV_BYTES:]
        mechanism, parameters, _kept = self._parameters(session, iv, context)
        opened = key.decrypt(sealed, mechanism=mechanism, mechanism_param=parameters)
        _scrub(_OUTPUT_BYTES)
        plaintext = bytearray(opened)
        erase(opened)
        return plaintext

    def _encrypt(
        self, session: Session, key: Any, iv: bytes, plaintext: bytes | bytearray, context: Context
    ) -> bytes:
        mechanism, parameters, _kept = self._parameters(session, iv, context)
        with _frozen(plaintext) as frozen:
            made = key.encrypt(frozen, mechanism=mechanism, mechanism_param=parameters)
        return bytes(made)

    def _parameters(self, session: Session, iv: bytes, context: Context) -> tuple[Any, Any, Any]:
        """Mechanism, its parameter, and what the parameter points to."""
        from pkcs11 import GCMParams, Mechanism

        if self._number is None:
            _need(session, Mechanism.AES_GCM)
            return Mechanism.AES_GCM, GCMParams(iv, context.encoded, TAG_BYTES * 8), None
        return _vendors(self._number), *_raw_parameters(iv, context.encoded)


class AesKwp:
    """RFC 5649 around the digest of the context and the plaintext."""

    wrap_alg = KWP
    kind: ObjectKind = "SECRET_KEY"

    def check(self, size: int) -> None:
        """Multiples of eight: some tokens pad others and do not take the padding off again."""
        _check_size(size, MAX_PLAINTEXT_BYTES)
        if size % _BLOCK:
            raise InvalidRequest(f"AES-KWP wraps multiples of {_BLOCK} bytes, not {size}")

    def fits(self, blob: bytes) -> bool:
        """A block more than the digest and a plaintext."""
        most = _DIGEST_BYTES + MAX_PLAINTEXT_BYTES + _BLOCK
        return _DIGEST_BYTES + _BLOCK < len(blob) <= most and not len(blob) % _BLOCK

    def wrap(
        self, session: Session, name: KeyName, plaintext: bytes | bytearray, context: Context
    ) -> bytes:
        """As a session object of the token, which is gone again afterwards."""
        from pkcs11 import Attribute, KeyType, ObjectClass

        with _bound(plaintext, context) as bound:
            wrapped = session.raw.create_object(
                {
                    Attribute.CLASS: ObjectClass.SECRET_KEY,
                    Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
                    Attribute.VALUE: bound,
                    **_transient(),
                }
            )
            _scrub(len(bound))
        try:
            kek = session.key(name, self.kind)
            return bytes(kek.wrap_key(wrapped, mechanism=_key_wrap(session)))
        finally:
            wrapped.destroy()

    def unwrap(self, session: Session, name: KeyName, blob: bytes, context: Context) -> bytearray:
        """Into a session object, whose value is read and which is gone again afterwards."""
        from pkcs11 import Attribute, KeyType, ObjectClass

        kek = session.key(name, self.kind)
        unwrapped = kek.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.GENERIC_SECRET,
            blob,
            mechanism=_key_wrap(session),
            template=_transient(),
        )
        try:
            value = unwrapped[Attribute.VALUE]
            _scrub(len(value))
            return _unbound(value, context)
        finally:
            unwrapped.destroy()


class RsaOaep:
    """RSAES-OAEP around the digest of the context and the plaintext."""

    kind: ObjectKind = "PRIVATE_KEY"

    def __init__(self, hash_name: str, digest_bytes: int, wrap_alg: int) -> None:
        self._hash_name = hash_name
        self._overhead = 2 * digest_bytes + 2 + _DIGEST_BYTES
        self.wrap_alg = wrap_alg

    def check(self, size: int) -> None:
        """What the largest keys take; the token refuses what is too much for its own."""
        _check_size(size, 2048 - self._overhead)

    def fits(self, blob: bytes) -> bool:
        """As long as a modulus can be."""
        return 128 <= len(blob) <= 2048

    def wrap(
        self, session: Session, name: KeyName, plaintext: bytes | bytearray, context: Context
    ) -> bytes:
        """With the public half."""
        public = session.key(name, "PUBLIC_KEY")
        most = public.key_length // 8 - self._overhead
        _check_size(len(plaintext), most)
        with _bound(plaintext, context) as bound:
            return bytes(public.encrypt(bound, **self._mechanism(session)))

    def unwrap(self, session: Session, name: KeyName, blob: bytes, context: Context) -> bytearray:
        """With the private half."""
        private = session.key(name, self.kind)
        if len(blob) * 8 != private.key_length:
            raise refused(name.uri)
        opened = private.decrypt(blob, **self._mechanism(session))
        _scrub(_OUTPUT_BYTES)
        return _unbound(opened, context)

    def _mechanism(self, session: Session) -> dict[str, Any]:
        from pkcs11 import MGF, Mechanism

        _need(session, Mechanism.RSA_PKCS_OAEP)
        hash_name = {"SHA1": "SHA_1"}.get(self._hash_name, self._hash_name)
        parameters = (Mechanism[hash_name], MGF[self._hash_name], None)
        return {"mechanism": Mechanism.RSA_PKCS_OAEP, "mechanism_param": parameters}


def wrapping_for(settings: Pkcs11Settings) -> Mapping[int, Wrapping]:
    """All ways to wrap by number; the first is the one to wrap with."""
    every: dict[str, Wrapping] = {
        "aes-gcm": AesGcm(settings),
        "aes-kwp": AesKwp(),
        "rsa-oaep-sha256": RsaOaep("SHA256", 32, OAEP_SHA256),
        "rsa-oaep-sha1": RsaOaep("SHA1", 20, OAEP_SHA1),
    }
    chosen = every.pop(settings.mechanism)
    return {each.wrap_alg: each for each in (chosen, *every.values())}


@contextmanager
def _frozen(plaintext: bytes | bytearray) -> Iterator[bytes]:
    """What python-pkcs11 takes: ``bytes`` of our own, which are erased in the end."""
    frozen = bytes(memoryview(plaintext))  # never the caller's own object
    try:
        yield frozen
    finally:
        erase(frozen)


@contextmanager
def _bound(plaintext: bytes | bytearray, context: Context) -> Iterator[bytes]:
    """The same with the digest of the context in front."""
    bound = bind_context(plaintext, context)
    try:
        with _frozen(bound) as frozen:
            yield frozen
    finally:
        wipe(bound)


def _unbound(bound: bytes, context: Context) -> bytearray:
    """The plaintext out of what python-pkcs11 has just returned, which is erased."""
    try:
        return unbind_context(bound, context)
    finally:
        erase(bound)


def _scrub(size: int) -> None:
    """Overwrite a buffer of this size that python-pkcs11 has just freed with a secret in it.

    Allocators give what was freed last to whoever asks next for as much.  That is a habit of theirs
    and no promise, so this is best effort.
    """
    bytearray(size - 1)  # of zeros, and one more behind them


def _check_size(size: int, most: int) -> None:
    if not 1 <= size <= most:
        raise InvalidRequest(f"this key wraps 1 to {most} bytes, not {size}; seal() takes more")


def _need(session: Session, mechanism: Any) -> None:
    if mechanism not in session.mechanisms:
        raise InvalidRequest(
            f"the token has no mechanism {mechanism.name}; choose another with mechanism"
        )


def _key_wrap(session: Session) -> Any:
    """RFC 5649, under the standard's number or the older one that some modules know."""
    from pkcs11 import Mechanism

    for mechanism in (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD):
        if mechanism in session.mechanisms:
            return mechanism
    raise InvalidRequest("the token has no AES-KWP; choose another with mechanism")


def _transient() -> dict[Any, Any]:
    from pkcs11 import Attribute

    return {Attribute.TOKEN: False, Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}


def _vendors(number: int) -> Any:
    """A mechanism that the standard does not number."""
    from pkcs11 import Mechanism

    mechanism: Any = int.__new__(Mechanism, number)
    mechanism._name_, mechanism._value_ = f"0x{number:08X}", number
    return mechanism


class _GcmParameters(ctypes.Structure):
    """CK_GCM_PARAMS of PKCS#11 2.40 errata 1."""

    _fields_ = (
        ("iv", ctypes.c_void_p),
        ("iv_bytes", ctypes.c_ulong),
        ("iv_bits", ctypes.c_ulong),
        ("aad", ctypes.c_void_p),
        ("aad_bytes", ctypes.c_ulong),
        ("tag_bits", ctypes.c_ulong),
    )


def _raw_parameters(iv: bytes, aad: bytes) -> tuple[bytes, Any]:
    """The structure as bytes, and what it points to, to be kept alive."""
    held = iv, ctypes.create_string_buffer(aad, len(aad) or 1)
    parameters = _GcmParameters(
        ctypes.cast(ctypes.c_char_p(iv), ctypes.c_void_p),
        len(iv),
        len(iv) * 8,
        ctypes.cast(held[1], ctypes.c_void_p),
        len(aad),
        TAG_BYTES * 8,
    )
    return bytes(parameters), held
