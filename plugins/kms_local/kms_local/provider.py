"""The provider: wraps data keys under the keys of a key store, with the context bound natively.

The blob of a wrap (algorithm 0x0501) is IV || ciphertext || tag of AES-256-GCM, whose associated
data is the canonical context.  Everything about the file is the store's business.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, ClassVar, Final, Literal
from urllib.parse import quote

from attrs import Attribute, field, frozen, validators
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_core import (
    Ciphertext,
    Context,
    DataKey,
    Health,
    InvalidCiphertext,
    InvalidRequest,
    KeyInfo,
    KeyNotFound,
    Secret,
    ServiceError,
    Unavailable,
    erase,
    hookimpl,
)
from kms_local.key_uri import KEY_NAME, KEY_NAME_RULE, KeyRef
from kms_local.layout import Contents
from kms_local.material import IV_BYTES, TAG_BYTES
from kms_local.store import KeyStore

WRAP_ALG: Final = 0x0501  # AES-256-GCM under a local key
MAX_PLAINTEXT_BYTES: Final = 4096  # what every provider takes, so that instances can stand in
DATA_KEY_BYTES: Final = 32

_OVERHEAD: Final = IV_BYTES + TAG_BYTES


def _names_a_file(_settings: Any, attribute: Attribute[Path], path: Path) -> None:
    if not path.name or "\0" in str(path):
        raise ValueError(f"{attribute.name} must name a file")


def _is_key_name(_settings: Any, attribute: Attribute[Any], name: str) -> None:
    if not KEY_NAME.fullmatch(name):
        raise ValueError(f"{attribute.name}: {name!r} is not a key name: {KEY_NAME_RULE}")


@frozen
class LocalSettings:
    """``key`` wraps and unwraps; the keys in ``also_open`` of the same store only unwrap."""

    path: Path = field(validator=_names_a_file)
    key: str = field(default="default", validator=_is_key_name)
    passphrase: Secret | None = None
    also_open: tuple[str, ...] = field(default=(), validator=validators.deep_iterable(_is_key_name))


class LocalProvider:
    """One key of a key store.  Making one does no I/O; any thread may use it."""

    type_name: ClassVar[str] = "local"
    settings: ClassVar[type[Any]] = LocalSettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset({WRAP_ALG})
    protection: Literal["hsm", "software", "local"] = "local"

    def __init__(self, settings: LocalSettings) -> None:
        self._store = KeyStore(settings.path, passphrase=settings.passphrase)
        self._key = settings.key
        self._opens = frozenset({settings.key, *settings.also_open})
        # Before the file is read its id is unknown.  The file's name stands in for it then, behind
        # a word with a colon, which no store id contains.
        stand_in = quote(os.fsencode(settings.path.name), safe="")
        self._uri_before_reading = f"local://file:{stand_in}/{settings.key}"

    @property
    def key_uri(self) -> str:
        """``local://<store id>/<key>``, and ``local://file:<name>/<key>`` before the first read."""
        store_id = self._store.last_store_id
        return self._uri_before_reading if store_id is None else KeyRef(store_id, self._key).uri

    def match(self, key_uri: str) -> str | None:
        """``<key>/<version>`` for a version in the store, ``<key>`` where the URI has no version.

        Raises ``Unavailable`` only if the store cannot be read and the URI may be one of its own.
        """
        if key_uri == self._uri_before_reading:
            return self._key
        ref = KeyRef.parse(key_uri)
        if ref is None or ref.key not in self._opens:
            return None
        contents = self._contents_for(ref)
        return ref.key_id if contents is not None and _holds(contents, ref) else None

    def domain(self, key_uri: str) -> str:  # noqa: ARG002  one machine fails as a whole
        """All local keys share the fate of this machine."""
        return self.type_name

    def prepare(self) -> None:
        """Spend what the passphrase costs before the first call is timed.

        What is wrong with the store is for that call to report, which knows whether it matters.
        """
        with contextlib.suppress(ServiceError):
            self._store.unlock()

    def close(self) -> None:
        """Wipe what can be wiped."""
        self._store.close()

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap 1 to 4096 bytes under the primary version."""
        _check_plaintext(plaintext)
        return self._wrap(key_id, plaintext, context)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        """Unwrap under the version that the ciphertext's key URI names."""
        blob = ciphertext.data
        if not isinstance(blob, bytes | bytearray):
            raise InvalidRequest(f"a ciphertext is bytes, not {type(blob).__name__}")
        cipher = self._cipher_of(key_id, ciphertext.key_uri)
        if not _OVERHEAD < len(blob) <= _OVERHEAD + MAX_PLAINTEXT_BYTES:
            raise InvalidCiphertext("authentication failed")
        plaintext = bytearray(len(blob) - _OVERHEAD)  # and no copy that could not be wiped
        try:
            cipher.decrypt_into(blob[:IV_BYTES], blob[IV_BYTES:], context.encoded, plaintext)
        except InvalidTag:
            raise InvalidCiphertext("authentication failed") from None
        return plaintext

    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        """Draw 32 bytes and wrap them."""
        drawn = os.urandom(DATA_KEY_BYTES)
        plaintext = bytearray(drawn)
        erase(drawn)
        return DataKey(plaintext, self._wrap(key_id, plaintext, context))

    @hookimpl
    def health(self, key_id: str) -> Health:
        """Whether the primary version may be used, and its material can be reached."""
        info = self.describe_key(key_id)
        what = f"version {info.primary_version} of key {self._key} is {info.state}"
        if info.state != "enabled":
            return Health(ok=False, reason=what)
        self._store.primary(self._key)
        return Health(ok=True, reason=what)

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        """What the file says about the key; its state is that of its primary version."""
        self._check_key_id(key_id)
        key = self._store.key(self._key)
        return KeyInfo(
            key_uri=self.key_uri,
            state=key.versions[key.primary].state,
            protection=self.protection,
            primary_version=str(key.primary),
            versions=tuple(map(str, key.versions)),
            rotation=False,
        )

    @hookimpl
    def rotate_key(self, key_id: str) -> KeyInfo:
        """Add a version to the file and wrap under it from now on."""
        self._check_key_id(key_id)
        self._store.rotate(self._key)
        return self.describe_key(key_id)

    def _wrap(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        self._check_key_id(key_id)
        ref, cipher = self._store.primary(self._key)
        iv = os.urandom(IV_BYTES)
        return Ciphertext(
            data=iv + cipher.encrypt(iv, plaintext, context.encoded),
            key_uri=ref.uri,
            key_version=str(ref.version),
            wrap_alg=WRAP_ALG,
        )

    def _check_key_id(self, key_id: str) -> None:
        if key_id != self._key:
            raise KeyNotFound(f"this instance works with key {self._key!r}, not {key_id!r}")

    def _cipher_of(self, key_id: str, key_uri: str) -> AESGCM:
        """The cipher for a ciphertext; ``InvalidCiphertext`` unless it is one of ``key_id``."""
        ref = KeyRef.parse(key_uri)
        if ref is None or ref.version is None or key_id not in {ref.key, ref.key_id}:
            raise InvalidCiphertext("the ciphertext does not name a version of the key asked for")
        if self.match(key_uri) is None:
            raise InvalidCiphertext("the ciphertext was made under a key that is not held here")
        return self._store.version(ref.key, ref.version)

    def _contents_for(self, ref: KeyRef) -> Contents | None:
        """The store's contents; ``None`` if it cannot be read and is not the one meant anyway."""
        try:
            return self._store.read()
        except Unavailable:
            if self._store.last_store_id in {None, ref.store_id}:
                raise
            return None


def _holds(contents: Contents, ref: KeyRef) -> bool:
    key = contents.keys.get(ref.key)
    if key is None or ref.store_id != contents.store_id:
        return False
    return ref.version is None or ref.version in key.versions


def _check_plaintext(plaintext: object) -> None:
    if not isinstance(plaintext, bytes | bytearray):
        raise InvalidRequest(f"a plaintext is bytes, not {type(plaintext).__name__}; encode it")
    if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
        raise InvalidRequest(
            f"a local key wraps 1 to {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}; "
            "seal() takes more"
        )
