"""A complete provider without a service: real AES-256-GCM under keys that live in this process.

For tests and demonstrations.  ``MemoryStore`` stands for the service: it outlives the provider
instances that use it, and two instances on one store see each other's keys and rotations.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

from attrs import evolve, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_core.context import Context
from kms_core.errors import InvalidCiphertext, InvalidRequest, KeyDisabled, KeyNotFound
from kms_core.hookspecs import hookimpl
from kms_core.types import (
    THIRD_PARTY_WRAP_ALG,
    Ciphertext,
    DataKey,
    Health,
    KeyInfo,
    Protection,
)

MAX_PLAINTEXT_BYTES: Final = 4096  # what the contract asks of a provider, and what AWS takes
DATA_KEY_BYTES: Final = 32

_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@frozen
class _Key:
    """One KEK; version ``n`` is ``versions[n - 1]`` and the last one is primary."""

    versions: tuple[AESGCM, ...]
    enabled: bool = True


class MemoryStore:
    """The service: named KEKs with versions, gone when the last reference is.

    Readers take no lock (a key is replaced whole), so a fork in mid-write leaves none held.
    """

    def __init__(
        self,
        store_id: str | None = None,
        *,
        keys: Iterable[str] = ("default",),
        protection: Protection = "software",
    ) -> None:
        self.store_id = _checked(store_id or secrets.token_hex(8))
        self.protection: Protection = protection
        self._keys: dict[str, _Key] = {}
        self._writing = threading.Lock()
        for key in keys:
            self.create(key)

    def create(self, key: str) -> None:
        """Add a key with its version 1."""
        with self._writing:
            if key in self._keys:
                raise InvalidRequest(f"memory store {self.store_id} already has key {key}")
            self._keys[_checked(key)] = _Key((_fresh(),))

    def rotate(self, key: str) -> None:
        """Give ``key`` a new primary version."""
        with self._writing:
            old = self._find(key)
            self._keys[key] = evolve(old, versions=(*old.versions, _fresh()))

    def disable(self, key: str) -> None:
        """Make every use of ``key`` raise ``KeyDisabled``."""
        with self._writing:
            self._keys[key] = evolve(self._find(key), enabled=False)

    def enable(self, key: str) -> None:
        """Undo ``disable``."""
        with self._writing:
            self._keys[key] = evolve(self._find(key), enabled=True)

    def is_enabled(self, key: str) -> bool:
        """Whether ``key`` may be used; raises ``KeyNotFound`` if there is none."""
        return self._find(key).enabled

    def versions(self, key: str) -> tuple[str, ...]:
        """The versions of ``key``, oldest first."""
        return tuple(str(number + 1) for number in range(len(self._find(key).versions)))

    def primary(self, key: str) -> tuple[str, AESGCM]:
        """The newest version of ``key`` and its cipher."""
        versions = self._usable(key).versions
        return str(len(versions)), versions[-1]

    def version(self, key: str, version: str) -> AESGCM:
        """The cipher of one version of ``key``."""
        versions = self._usable(key).versions
        if not _VERSION.fullmatch(version) or int(version) > len(versions):
            raise KeyNotFound(f"memory store {self.store_id} has no such version of key {key}")
        return versions[int(version) - 1]

    def _usable(self, name: str) -> _Key:
        key = self._find(name)
        if not key.enabled:
            raise KeyDisabled(f"key {name} of memory store {self.store_id} is disabled; enable it")
        return key

    def _find(self, name: str) -> _Key:
        try:
            return self._keys[name]
        except KeyError:
            message = f"memory store {self.store_id} has no key {name!r}; create it first"
            raise KeyNotFound(message) from None

    def __repr__(self) -> str:
        return f"MemoryStore({self.store_id!r}, keys={sorted(self._keys)})"


@frozen
class MemorySettings:
    """``store`` is the service to use; without one the instance keeps a store of its own."""

    key: str = "default"
    store: MemoryStore | None = None


class MemoryProvider:
    """Wraps under keys of a ``MemoryStore``; the blob is IV, ciphertext and tag."""

    type_name: ClassVar[str] = "memory"
    settings: ClassVar[type[Any]] = MemorySettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset({THIRD_PARTY_WRAP_ALG})
    protection: Protection = "software"

    def __init__(self, settings: MemorySettings) -> None:
        self.store = settings.store or MemoryStore(keys=(settings.key,))
        self.protection = self.store.protection
        self._key = settings.key

    @property
    def key_uri(self) -> str:
        """Without a version: which one is primary is for the store to say."""
        return self._uri(self._key)

    def match(self, key_uri: str) -> str | None:
        """The configured key, for its name without a version or with one that exists."""
        if key_uri == self.key_uri:
            return self._key
        try:
            versions = self.store.versions(self._key)
        except KeyNotFound:
            return None
        return self._key if key_uri in {self._uri(self._key, v) for v in versions} else None

    def domain(self, key_uri: str) -> str:
        """One store fails as a whole."""
        store_id, _, _ = key_uri.removeprefix(f"{self.type_name}://").partition("/")
        return f"{self.type_name}:{store_id}"

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap 1 to 4096 bytes; the canonical context is the associated data."""
        _check_plaintext(plaintext)
        return self._wrap(key_id, plaintext, context)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        """Unwrap under the version that the ciphertext's key URI names."""
        blob = ciphertext.data
        if not isinstance(blob, bytes):
            raise InvalidRequest(f"a ciphertext is bytes, not {type(blob).__name__}")
        version = self._version_of(key_id, ciphertext.key_uri)
        if len(blob) <= _IV_BYTES + _TAG_BYTES:
            raise InvalidCiphertext("authentication failed")
        aead = self.store.version(key_id, version)
        try:
            return bytearray(aead.decrypt(blob[:_IV_BYTES], blob[_IV_BYTES:], context.encoded))
        except InvalidTag:
            raise InvalidCiphertext("authentication failed") from None

    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        """Draw a key and wrap it."""
        plaintext = bytearray(os.urandom(DATA_KEY_BYTES))
        return DataKey(plaintext, self._wrap(key_id, plaintext, context))

    @hookimpl
    def health(self, key_id: str) -> Health:
        """Well as long as the key exists and is enabled."""
        if self.store.is_enabled(key_id):
            return Health(ok=True, reason=f"key {key_id} is enabled")
        return Health(ok=False, reason=f"key {key_id} is disabled")

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        """What the store knows about the key."""
        versions = self.store.versions(key_id)
        return KeyInfo(
            key_uri=self._uri(key_id),
            state="enabled" if self.store.is_enabled(key_id) else "disabled",
            protection=self.protection,
            primary_version=versions[-1],
            versions=versions,
            rotation=False,
        )

    @hookimpl
    def rotate_key(self, key_id: str) -> KeyInfo:
        """Add a version in the store."""
        self.store.rotate(key_id)
        return self.describe_key(key_id)

    def _wrap(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        version, aead = self.store.primary(key_id)
        iv = os.urandom(_IV_BYTES)
        return Ciphertext(
            data=iv + aead.encrypt(iv, plaintext, context.encoded),
            key_uri=self._uri(key_id, version),
            key_version=version,
            wrap_alg=THIRD_PARTY_WRAP_ALG,
        )

    def _uri(self, *path: str) -> str:
        return f"{self.type_name}://{'/'.join((self.store.store_id, *path))}"

    def _version_of(self, key_id: str, key_uri: str) -> str:
        prefix = self._uri(key_id, "")
        version = key_uri.removeprefix(prefix)
        if not key_uri.startswith(prefix) or version not in self.store.versions(key_id):
            raise InvalidCiphertext(f"the ciphertext is not one of key {key_id}")
        return version


@hookimpl
def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
    """Register ``MemoryProvider``: this module is a plugin like any other."""
    register(MemoryProvider)


def _fresh() -> AESGCM:
    return AESGCM(AESGCM.generate_key(bit_length=256))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "names of memory stores and keys are 1 to 64 letters, digits, dots, hyphens and "
            "underscores, and begin with a letter or digit"
        )
    return name


def _check_plaintext(plaintext: object) -> None:
    if not isinstance(plaintext, bytes | bytearray):
        raise InvalidRequest(f"a plaintext is bytes, not {type(plaintext).__name__}; encode it")
    if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
        raise InvalidRequest(
            f"a memory key wraps 1 to {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}; "
            "seal() takes more"
        )
