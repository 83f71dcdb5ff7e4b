"""The key store: keys with versions, in one file that several processes may read and change.

A store reads its file when first asked and again whenever the file has changed, so that a rotation
by another process is seen.  It changes the file whole, one writer at a time.  What wrapping means
is not its business: it hands out ciphers.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from attrs import evolve, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_core import (
    AccessDenied,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    Secret,
    Unavailable,
    wipe,
)
from kms_local import layout, material, private_file
from kms_local.errors import translated
from kms_local.key_uri import KEY_NAME, KEY_NAME_RULE, KeyRef
from kms_local.layout import Contents, Kdf, Key, State, Version


@frozen
class _Read:
    """The file as last read, and how to tell whether it is still the same."""

    stamp: private_file.Stamp
    contents: Contents


@frozen
class _Derived:
    """The sealing key, derived once for the salt and the costs that the file names."""

    kdf: Kdf
    key: bytearray


class KeyStore:
    """The keys in one file.  Making one does no I/O; any thread may use it.

    Every method that reads raises ``Unavailable`` if the file is missing, damaged or open to other
    users; every one that needs key material raises ``AccessDenied`` unless the passphrase fits.
    """

    def __init__(self, path: str | os.PathLike[str], *, passphrase: Secret | None = None) -> None:
        self.path = Path(path).absolute()
        self._passphrase = passphrase
        self._read: _Read | None = None
        self._derived: _Derived | None = None
        self._deriving = threading.Lock()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        passphrase: Secret | None = None,
        key: str = "default",
    ) -> Self:
        """Write a new store with one key; raises ``InvalidRequest`` if the file exists."""
        if passphrase is not None and not passphrase.reveal():
            raise InvalidRequest("the passphrase is empty; give one, or none at all")
        store = cls(path, passphrase=passphrase)
        kdf = None if passphrase is None else Kdf(os.urandom(layout.SALT_BYTES))
        empty = Contents(secrets.token_hex(8), {}, kdf)
        contents = _with_key(empty, key, store._fresh(empty, key, 1))
        with translated(store.path, "create"):
            private_file.create(store.path, layout.serialise(contents))
        return store

    @property
    def last_store_id(self) -> str | None:
        """The store's id as far as it is known without reading now."""
        return None if self._read is None else self._read.contents.store_id

    def read(self) -> Contents:
        """What the file says now; its material stays sealed."""
        # No lock: two threads may both read a changed file, and an older state that comes second
        # is noticed at the next call.  A lock could be left held in a forked child.
        known = self._read
        with translated(self.path, "read"):
            if known is not None and known.stamp == private_file.Stamp.of(self.path.stat()):
                return known.contents
            stamp, data = private_file.read(self.path)
        try:
            contents = layout.parse(data)
        except layout.Damaged as exc:
            message = f"key store {self.path} is damaged: {exc}; restore it from a backup"
            raise Unavailable(message) from exc
        self._read = _Read(stamp, contents)
        return contents

    def key(self, name: str) -> Key:
        """A key with its versions, oldest first; raises ``KeyNotFound``."""
        return self._find(self.read(), name)

    def primary(self, name: str) -> tuple[KeyRef, AESGCM]:
        """The version of a key that wraps, and its cipher; raises ``KeyDisabled``."""
        contents = self.read()
        key = self._find(contents, name)
        return self._cipher(contents, name, key.versions[key.primary])

    def version(self, name: str, number: int) -> AESGCM:
        """The cipher of one version; raises ``KeyNotFound`` or ``KeyDisabled``."""
        contents = self.read()
        _, cipher = self._cipher(contents, name, self._find_version(contents, name, number))
        return cipher

    def add_key(self, name: str) -> None:
        """Add a key with its version 1; raises ``InvalidRequest`` if there is one."""

        def edit(contents: Contents) -> Contents:
            if name in contents.keys:
                raise InvalidRequest(f"key store {self.path} has a key {name!r} already; rotate it")
            return _with_key(contents, name, self._fresh(contents, name, 1))

        self._change(edit)

    def rotate(self, name: str) -> int:
        """Add a version and make it primary; the older ones go on unwrapping.  Its number."""
        added = 0

        def edit(contents: Contents) -> Contents:
            nonlocal added
            added = max(self._find(contents, name).versions) + 1
            return _with_version(contents, name, self._fresh(contents, name, added), primary=added)

        self._change(edit)
        return added

    def disable(self, name: str, number: int) -> None:
        """Refuse every use of a version until it is enabled; its material is kept."""
        self._set_state(name, number, "disabled")

    def enable(self, name: str, number: int) -> None:
        """Undo ``disable``."""
        self._set_state(name, number, "enabled")

    def unlock(self) -> None:
        """Do now what the passphrase costs, so that the next use does not wait for it."""
        wipe(self._sealing_key(self.read()))

    def close(self) -> None:
        """Wipe the key that came from the passphrase; the next use would derive it again."""
        derived, self._derived = self._derived, None
        if derived is not None:
            wipe(derived.key)

    def _change(self, edit: Callable[[Contents], Contents]) -> None:
        self.read()  # what is wrong with the file is said in a reader's words
        with translated(self.path, "change"), private_file.locked(self.path):
            data = layout.serialise(edit(self.read()))
            if len(data) > private_file.MAX_BYTES:
                raise InvalidRequest(f"key store {self.path} is full; begin another one")
            private_file.replace(self.path, data)

    def _set_state(self, name: str, number: int, state: State) -> None:
        def edit(contents: Contents) -> Contents:
            version = evolve(self._find_version(contents, name, number), state=state)
            return _with_version(contents, name, version, primary=contents.keys[name].primary)

        self._change(edit)

    def _find(self, contents: Contents, name: str) -> Key:
        try:
            return contents.keys[name]
        except KeyError:
            message = f"key store {self.path} has no key {name!r}; `kms local keys` lists its keys"
            raise KeyNotFound(message) from None

    def _find_version(self, contents: Contents, name: str, number: int) -> Version:
        try:
            return self._find(contents, name).versions[number]
        except KeyError:
            message = f"key {name!r} of key store {self.path} has no version {number}"
            raise KeyNotFound(f"{message}; `kms local keys` lists its versions") from None

    def _cipher(self, contents: Contents, name: str, version: Version) -> tuple[KeyRef, AESGCM]:
        if version.state == "disabled":
            raise KeyDisabled(
                f"version {version.number} of key {name!r} of key store {self.path} is disabled; "
                f"`kms local enable {name} {version.number}` allows it again"
            )
        ref = KeyRef(contents.store_id, name, version.number)
        key = self._unsealed(self._sealing_key(contents), version, ref)
        try:
            return ref, AESGCM(key)
        finally:
            wipe(key)

    def _unsealed(self, sealing_key: bytearray | None, version: Version, ref: KeyRef) -> bytearray:
        try:
            return material.unseal(sealing_key, version.material, ref.uri)
        except InvalidTag:
            raise self._refused() from None
        finally:
            wipe(sealing_key)

    def _refused(self) -> AccessDenied:
        return AccessDenied(
            f"the passphrase does not open key store {self.path}; check the setting passphrase"
        )

    def _fresh(self, contents: Contents, name: str, number: int) -> Version:
        """A new version with random material, sealed as all the others are."""
        if not KEY_NAME.fullmatch(name):
            raise InvalidRequest(f"{name!r} is not a key name: {KEY_NAME_RULE}")
        sealing_key = self._sealing_key(contents)
        try:
            self._prove(sealing_key, contents)
            ref = KeyRef(contents.store_id, name, number)
            sealed = material.seal(sealing_key, os.urandom(layout.KEY_BYTES), ref.uri)
        finally:
            wipe(sealing_key)
        return Version(number, datetime.now(UTC).replace(microsecond=0), sealed)

    def _prove(self, sealing_key: bytearray | None, contents: Contents) -> None:
        """Nothing is sealed under a mistyped passphrase: it has to open something that is there."""
        versions = [
            (version.material, KeyRef(contents.store_id, name, version.number).uri)
            for name, key in contents.keys.items()
            for version in key.versions.values()
        ]
        if versions and not any(material.opens(sealing_key, *version) for version in versions):
            raise self._refused()

    def _sealing_key(self, contents: Contents) -> bytearray | None:
        """A copy, so that ``close`` in another thread cannot zero it half-way through its use.

        The caller wipes it.
        """
        kdf, passphrase = contents.kdf, self._passphrase
        if kdf is None and passphrase is None:
            return None
        if kdf is None:
            raise AccessDenied(
                f"key store {self.path} has no passphrase, and one is set: somebody replaced the "
                "file, or the setting passphrase is left over"
            )
        if passphrase is None:
            raise AccessDenied(f"key store {self.path} needs the setting passphrase")
        return bytearray(self._derive(passphrase, kdf).key)

    def _derive(self, passphrase: Secret, kdf: Kdf) -> _Derived:
        derived = self._derived
        if derived is not None and derived.kdf == kdf:
            return derived
        with self._deriving:  # threads that come together pay the memory once
            derived = self._derived
            if derived is None or derived.kdf != kdf:
                self.close()
                self._derived = derived = _Derived(kdf, material.derive(passphrase, kdf))
        return derived


def _with_key(contents: Contents, name: str, version: Version) -> Contents:
    key = Key(version.number, {version.number: version})
    return evolve(contents, keys={**contents.keys, name: key})


def _with_version(contents: Contents, name: str, version: Version, *, primary: int) -> Contents:
    versions = {**contents.keys[name].versions, version.number: version}
    return evolve(contents, keys={**contents.keys, name: Key(primary, versions)})
