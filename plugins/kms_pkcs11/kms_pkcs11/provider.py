"""The provider type ``pkcs11``: keys in a token that a vendor's module leads to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal, TypeVar

from kms_core import (
    MAC_ALGORITHMS,
    Ciphertext,
    Context,
    Health,
    InvalidCiphertext,
    InvalidRequest,
    KeyInfo,
    KMSError,
    PublicKey,
    Signature,
    Unavailable,
    hookimpl,
    verify_signature,
)
from kms_pkcs11 import signing
from kms_pkcs11.errors import is_doubtful, refused, translate
from kms_pkcs11.sessions import Session, Sessions
from kms_pkcs11.settings import Pkcs11Settings
from kms_pkcs11.uri import KeyName
from kms_pkcs11.wrapping import (
    GCM,
    KWP,
    OAEP_SHA1,
    OAEP_SHA256,
    Wrapping,
    wrapping_for,
)

T = TypeVar("T")

_WRAPPING_KEYS: Final = {"SECRET_KEY": "an AES key", "PRIVATE_KEY": "a key pair"}
_CANARY: Final = Context({"kms_core:canary": "1"})
_CANARY_BYTES: Final = 32
_RSA_OAEP: Final = "RSA-OAEP-SHA256"


class Pkcs11Provider:
    """One key of a token, with the retired ones it also opens for.

    Tokens have no versions of keys: a new key has a new label or id, and the old one is named in
    ``also_open``.
    """

    type_name: ClassVar[str] = "pkcs11"
    settings: ClassVar[type[Any]] = Pkcs11Settings
    wrap_algs: ClassVar[frozenset[int]] = frozenset({KWP, GCM, OAEP_SHA256, OAEP_SHA1})
    protection: Literal["hsm", "software", "local"] = "hsm"

    def __init__(self, settings: Pkcs11Settings) -> None:
        self.protection = settings.protection
        self._configured_as = settings.key
        self._name = settings.name
        self._ours = {name.uri: name for name in (self._name, *settings.retired)}
        self._wrappings = wrapping_for(settings)
        self._sessions = Sessions(settings)

    @property
    def key_uri(self) -> str:
        """RFC 7512 in its canonical spelling."""
        return self._name.uri

    def match(self, key_uri: str) -> str | None:
        """The same URI if it names the configured key or a retired one."""
        return key_uri if key_uri in self._ours else None

    def domain(self, key_uri: str) -> str:
        """The token: its keys are lost together."""
        name = KeyName.of_uri(key_uri) or self._name
        return f"{self.type_name}:{name.serial or name.token}"

    def prepare(self) -> None:
        """Import the SDK and load the module."""
        self._guarded("prepare", self._name, self._sessions.load)

    def close(self) -> None:
        """Log out and close every session."""
        self._guarded("close", self._name, self._sessions.close)

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap as ``mechanism`` says."""
        name = self._named(key_id)
        wrapping = self._chosen
        _check_plaintext(plaintext, wrapping)
        blob = self._ask("encrypt", name, lambda s: wrapping.wrap(s, name, plaintext, context))
        return Ciphertext(data=blob, key_uri=name.uri, wrap_alg=wrapping.wrap_alg)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        """Unwrap with exactly the key that ``key_id`` names."""
        name = self._named(key_id)
        wrapping = self._wrappings.get(ciphertext.wrap_alg)
        blob = ciphertext.data
        if not isinstance(blob, bytes | bytearray):
            raise InvalidRequest(f"a ciphertext is bytes, not {type(blob).__name__}")
        if wrapping is None or not wrapping.fits(blob):
            raise refused(name.uri)

        def unwrap(session: Session) -> bytes | bytearray:
            return wrapping.unwrap(session, name, bytes(blob), context)

        try:
            return self._unwrapped(unwrap, name)
        except KMSError:
            raise
        except Exception as exc:
            if not is_doubtful(exc):
                raise translate(exc, "decrypt", name.uri) from exc
        return self._unwrapped_again(unwrap, name, wrapping)

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        """Sign, or make a MAC; messages are hashed here where tokens take digests."""
        name = self._named(key_id)
        signing.check(data, algorithm)
        made = self._ask("sign", name, lambda s: signing.sign(s, name, data, algorithm))
        return Signature(made, name.uri, algorithm)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        """MACs by the token; signatures with the public half that it holds."""
        name = self._named(key_id)
        signing.check(data, algorithm)
        if algorithm in MAC_ALGORITHMS:
            return self._ask(
                "verify",
                name,
                lambda s: signing.verify_mac(s, name, data, signature.data, algorithm),
            )
        der = self._ask("verify", name, lambda s: _public_half(s, name))
        public = PublicKey(der, name.uri, algorithms=signing.algorithms(der))
        return verify_signature(public, data, signature.data, algorithm)

    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        """The public half of a key pair; keys that wrap are told from those that sign by us."""
        name = self._named(key_id)
        if self._chosen.wrap_alg == OAEP_SHA1:
            raise InvalidRequest(
                f"{name.uri} takes OAEP with SHA-1 here, and nobody else is to wrap with that"
            )
        der = self._ask("public_key", name, lambda s: _public_half(s, name))
        algorithms = signing.algorithms(der)
        if self._chosen.wrap_alg != OAEP_SHA256:
            return PublicKey(der, name.uri, algorithms=algorithms)
        if algorithms != signing.RSA:
            raise InvalidRequest(f"{name.uri} is no RSA key; choose another with mechanism")
        return PublicKey(der, name.uri, algorithms=(_RSA_OAEP,), wrap_alg=OAEP_SHA256)

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        """That it is there: tokens know neither versions nor states."""
        name = self._named(key_id)
        self._ask("describe_key", name, lambda s: s.kind_of(name))
        return KeyInfo(key_uri=name.uri, state="enabled", protection=self.protection)

    @hookimpl
    def health(self, key_id: str) -> Health:
        """Whether the key is there and, if it is one that wraps, does so."""
        name = self._named(key_id)
        kind = self._ask("health", name, lambda s: s.kind_of(name))
        if kind != _WRAPPING_KEYS[self._chosen.kind]:
            return Health(ok=True, reason=f"{name.uri} is there, {kind}")
        self._ask("health", name, lambda s: _canary(s, name, self._chosen))
        return Health(ok=True, reason=f"{name.uri} wrapped and unwrapped")

    @property
    def _chosen(self) -> Wrapping:
        return next(iter(self._wrappings.values()))

    def _unwrapped(self, unwrap: Callable[[Session], T], name: KeyName) -> T:
        """By the token; raises ``InvalidCiphertext``, and what python-pkcs11 raises."""
        try:
            return self._sessions.run(unwrap, unwrapping=True)
        except InvalidCiphertext:  # it opened, in another context: told like all others
            raise refused(name.uri) from None

    def _unwrapped_again(
        self, unwrap: Callable[[Session], T], name: KeyName, wrapping: Wrapping
    ) -> T:
        """With a good canary before and a failure after it, the ciphertext is at fault.

        The canary may have mended what the first unwrap had failed for: a token that restarts must
        never have a good ciphertext taken for an altered one.
        """
        try:
            self._ask("decrypt", name, lambda s: _canary(s, name, wrapping))
        except InvalidCiphertext as exc:
            raise Unavailable(f"{name.uri} does not open what it has just wrapped") from exc
        try:
            return self._unwrapped(unwrap, name)
        except KMSError:
            raise
        except Exception as exc:
            if is_doubtful(exc):
                raise refused(name.uri) from exc
            raise translate(exc, "decrypt", name.uri) from exc

    def _ask(self, operation: str, name: KeyName, work: Callable[[Session], T]) -> T:
        return self._guarded(operation, name, lambda: self._sessions.run(work))

    def _guarded(self, operation: str, name: KeyName, work: Callable[[], T]) -> T:
        """Raise only the core's errors."""
        try:
            return work()
        except KMSError:
            raise
        except Exception as exc:
            raise translate(exc, operation, name.uri) from exc

    def _named(self, key_id: str) -> KeyName:
        if key_id in {self._configured_as, self._name.uri}:
            return self._name
        name = self._ours.get(key_id)
        if name is None:
            raise InvalidRequest(
                f"{key_id!r} is no key of this instance, which has {self._name.uri}; "
                "use what match() returns"
            )
        return name


def _check_plaintext(plaintext: object, wrapping: Wrapping) -> None:
    if not isinstance(plaintext, bytes | bytearray):
        raise InvalidRequest(f"a plaintext is bytes, not {type(plaintext).__name__}; encode it")
    wrapping.check(len(plaintext))


def _canary(session: Session, name: KeyName, wrapping: Wrapping) -> None:
    secret = os.urandom(_CANARY_BYTES)
    blob = wrapping.wrap(session, name, secret, _CANARY)
    if wrapping.unwrap(session, name, blob, _CANARY) != secret:
        raise Unavailable(f"{name.uri} unwrapped something else than it had wrapped")


def _public_half(session: Session, name: KeyName) -> bytes:
    signing.check_key_pair(session, name)
    return signing.public_key(session, name)
