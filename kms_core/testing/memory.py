"""A complete provider without a service: real cryptography under keys that live in this process.

For tests and demonstrations, and a model of a plugin: what the store raises goes through one
table, and what it answers is checked.  The store is in ``kms_core.testing.store``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Literal

from attrs import field, frozen

from kms_core.context import Context
from kms_core.errors import (
    AccessDenied,
    DeadlineExceeded,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    Throttled,
    Unavailable,
)
from kms_core.hookspecs import hookimpl
from kms_core.testing.store import Answer, MemoryStore, StoreCode, StoreError
from kms_core.types import (
    MAX_SIGNED_BYTES,
    RSA_OAEP,
    THIRD_PARTY_WRAP_ALG,
    Ciphertext,
    DataKey,
    Duration,
    Health,
    KeyInfo,
    Protection,
    PublicKey,
    Signature,
)

#: What each of the store's errors leaves the provider as.
BY_CODE: Final[Mapping[StoreCode, type[KMSError]]] = {
    "NoConnection": Unavailable,
    "NoAnswer": DeadlineExceeded,
    "Broken": Unavailable,
    "Unwell": Unavailable,
    "TooManyRequests": Throttled,
    "Forbidden": AccessDenied,
    "NoSuchKey": KeyNotFound,
    "KeyDisabled": KeyDisabled,
    "NotAuthentic": InvalidCiphertext,
    "BadRequest": InvalidRequest,
}


@frozen
class MemorySettings:
    """``store`` is the service to use; without one the instance keeps a store of its own.

    ``attempt_timeout``: seconds after which a hanging store is given up.
    """

    key: str = "default"
    store: MemoryStore | None = None
    attempt_timeout: Duration = field(default=Duration(3.0))


class MemoryProvider:
    """Uses one key of a ``MemoryStore``, in all its versions, for whatever the key is good for."""

    type_name: ClassVar[str] = "memory"
    settings: ClassVar[type[Any]] = MemorySettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset({THIRD_PARTY_WRAP_ALG})
    protection: Protection = "software"

    def __init__(self, settings: MemorySettings) -> None:
        self.store = settings.store or MemoryStore(keys=(settings.key,))
        self.protection = self.store.protection
        self.timeout: Final = settings.attempt_timeout
        self._key = settings.key

    @property
    def key_uri(self) -> str:
        """Without a version: which one is primary is for the store to say."""
        return self._uri(self._key)

    def match(self, key_uri: str) -> str | None:
        """The configured key, for its name without a version or with one that exists.

        With the version if the key signs; a wrap names its version itself.
        """
        versions = self.store.versions(self._key)
        version = next((v for v in versions if key_uri == self._uri(self._key, v)), None)
        if version is None:
            return self._key if key_uri == self.key_uri else None
        return f"{self._key}/{version}" if self.store.signs(self._key) else self._key

    def domain(self, key_uri: str) -> str:
        """One store fails as a whole."""
        store_id, _, _ = key_uri.removeprefix(f"{self.type_name}://").partition("/")
        return f"{self.type_name}:{store_id}"

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap 1 to 4096 bytes with an AES key, less with an RSA key."""
        if not isinstance(plaintext, bytes | bytearray):
            raise InvalidRequest(f"a plaintext is bytes, not {_kind_of(plaintext)}; encode it")
        key, _ = _parts(key_id)
        answer = self._ask(self.store.wrap, key, plaintext, context)
        return self._ciphertext(answer)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        """Unwrap under the version that the ciphertext's key URI names."""
        blob = ciphertext.data
        if not isinstance(blob, bytes):
            raise InvalidRequest(f"a ciphertext is bytes, not {_kind_of(blob)}")
        key, version = self._named(key_id, ciphertext.key_uri, InvalidCiphertext)
        answer = self._ask(self.store.unwrap, key, version, blob, context)
        return bytearray(answer.value or b"")

    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        """Let the store draw a key and wrap it."""
        key, _ = _parts(key_id)
        answer = self._ask(self.store.generate, key, context)
        if answer.plaintext is None:
            raise _nonsense("a data key without its plaintext")
        return DataKey(answer.plaintext, self._ciphertext(answer))

    @hookimpl
    def health(self, key_id: str) -> Health:
        """Well as long as the key exists and is enabled."""
        key, _ = _parts(key_id)
        answer = self._ask(self.store.describe, key)
        return Health(ok=_enabled(answer), reason=f"key {key} is {_state(answer)}")

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        """Sign with the version that ``key_id`` names, or the primary one."""
        _check_message(data)
        key, version = _parts(key_id)
        answer = self._ask(self.store.sign, key, version, data, algorithm)
        uri = self._uri(key, str(answer.version))
        return Signature(bytes(answer.value or b""), uri, algorithm, answer.version)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        """Let the store check against the version that the signature's key URI names."""
        _check_message(data)
        key, version = self._named(key_id, signature.key_uri, InvalidRequest)
        answer = self._ask(self.store.verify, key, version, data, signature.data, algorithm)
        return answer.value == b"valid"

    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        """That of the version that ``key_id`` names, or of the primary one."""
        key, version = _parts(key_id)
        answer = self._ask(self.store.public, key, version)
        return PublicKey(
            bytes(answer.value or b""),
            self._uri(key, str(answer.version)),
            answer.version,
            answer.algorithms,
            THIRD_PARTY_WRAP_ALG if RSA_OAEP in answer.algorithms else None,
        )

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        """What the store knows about the key."""
        key, _ = _parts(key_id)
        return self._info(key, self._ask(self.store.describe, key))

    @hookimpl
    def rotate_key(self, key_id: str) -> KeyInfo:
        """Add a version in the store."""
        key, _ = _parts(key_id)
        return self._info(key, self._ask(self.store.rotate_key, key))

    def _ask(self, request: Callable[..., Answer], key: str, *arguments: Any) -> Answer:
        """An answer that is whole, of the right key and as it was sent."""
        try:
            answer = request(key, *arguments, timeout=self.timeout)
        except StoreError as exc:
            raise self._translated(exc) from exc
        if answer.value is None or answer.version is None:
            raise _nonsense("an answer without its fields")
        if answer.key != key:
            raise _nonsense(f"an answer by another key than {key}")
        if answer.checksum != zlib.crc32(answer.value):
            raise _nonsense("an answer with a wrong checksum")
        return answer

    def _translated(self, error: StoreError) -> KMSError:
        kind, message = BY_CODE[error.code], f"memory store {self.store.store_id}: {error}"
        if kind is Throttled:
            return Throttled(message, retry_after=error.retry_after)
        return kind(message)

    def _ciphertext(self, answer: Answer) -> Ciphertext:
        return Ciphertext(
            data=bytes(answer.value or b""),
            key_uri=self._uri(str(answer.key), str(answer.version)),
            key_version=answer.version,
            wrap_alg=THIRD_PARTY_WRAP_ALG,
        )

    def _info(self, key: str, answer: Answer) -> KeyInfo:
        return KeyInfo(
            key_uri=self._uri(key),
            state=_state(answer),
            protection=self.protection,
            primary_version=answer.version,
            versions=answer.versions,
            rotation=False,
        )

    def _uri(self, *path: str) -> str:
        return f"{self.type_name}://{'/'.join((self.store.store_id, *path))}"

    def _named(self, key_id: str, key_uri: str, wrong: type[KMSError]) -> tuple[str, str]:
        """Key and version that ``key_uri`` names; ``wrong`` unless they are those of ``key_id``."""
        key, asked = _parts(key_id)
        version = key_uri.removeprefix(self._uri(key, ""))
        if key_uri != self._uri(key, version) or asked not in {None, version}:
            raise wrong(f"it names another key than {key_id}")
        if version not in self.store.versions(key):
            raise wrong(f"it names a version that key {key} does not have")
        return key, version


@hookimpl
def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
    """Register ``MemoryProvider``: this module is a plugin like any other."""
    register(MemoryProvider)


def _kind_of(value: object) -> str:
    return type(value).__name__


def _parts(key_id: str) -> tuple[str, str | None]:
    """Key and version of a key id: names have no slash."""
    key, _, version = key_id.partition("/")
    return key, version or None


def _enabled(answer: Answer) -> bool:
    return answer.value == b"enabled"


def _state(answer: Answer) -> Literal["enabled", "disabled"]:
    return "enabled" if _enabled(answer) else "disabled"


def _nonsense(what: str) -> Unavailable:
    return Unavailable(f"the memory store gave {what}; ask it again")


def _check_message(data: object) -> None:
    if not isinstance(data, bytes):
        raise InvalidRequest(f"a message is bytes, not {_kind_of(data)}; encode it")
    if len(data) > MAX_SIGNED_BYTES:
        raise InvalidRequest(f"up to {MAX_SIGNED_BYTES} bytes are signed: sign a digest of more")
