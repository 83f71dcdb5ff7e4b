"""The provider type ``azure-keyvault``: keys of Azure Key Vault and Managed HSM.

Wraps and signs with one configured key, unwraps and verifies with its versions and with the retired
keys that the configuration names.  The service does all of it: every request names an exact version
of a key, and every answer must name the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from attrs import evolve

from kms_azure.algorithms import PREFERRED, RSA_OAEP_256, WRAPS, Wrap
from kms_azure.description import versions_of
from kms_azure.keys import KeyFacts, KnownKeys
from kms_azure.names import VaultKey
from kms_azure.service import Service
from kms_azure.settings import AzureKeyVaultSettings
from kms_azure.signing import check_message, sign, verify
from kms_azure.wrapping import check_plaintext, unwrap_ciphertext, wrap_plaintext
from kms_core import (
    Ciphertext,
    Context,
    Health,
    InvalidRequest,
    KeyDisabled,
    KeyInfo,
    KeyNotFound,
    Protection,
    PublicKey,
    Signature,
    hookimpl,
)

RSA_OAEP: Final = "RSA-OAEP-SHA256"  # what the contract calls it in PublicKey.algorithms


class AzureKeyVaultProvider:
    """One key of a vault or Managed HSM, with the keys it also opens for."""

    type_name: ClassVar[str] = "azure-keyvault"
    settings: ClassVar[type[Any]] = AzureKeyVaultSettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset(WRAPS)

    def __init__(
        self,
        settings: AzureKeyVaultSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._configured = settings.configured_key
        self._retired = settings.retired_keys
        self._algorithm = settings.algorithm
        self._hsm = settings.hsm or settings.is_managed_hsm
        self._service = Service(settings)
        self._known = KnownKeys(self._ask, settings.version_max_age, monotonic)
        self._now = now

    @property
    def protection(self) -> Protection:
        """``hsm`` of a Managed HSM, and where the configuration insists on it."""
        return "hsm" if self._hsm else "software"

    @property
    def key_uri(self) -> str:
        """With the version if one is configured."""
        return self._configured.uri

    def match(self, key_uri: str) -> str | None:
        """The key id of a version of the configured key, or of a retired one.  Asks nobody."""
        key = self._ours(VaultKey.of_uri(key_uri))
        return None if key is None else key.key_id

    def domain(self, key_uri: str) -> str:
        """The vault: its owner can lock us out of all its keys."""
        key = VaultKey.of_uri(key_uri) or self._configured
        return f"{self.type_name}:{key.vault}"

    def prepare(self) -> None:
        """Import the SDK and build the client."""
        self._service.prepare()

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap with the version of ``key_id``, or else with the current one."""
        with self._facts(self._configured_key(key_id)) as facts:
            wrap = self._wrap(facts)
            check_plaintext(plaintext, facts, wrap)
            self._check_usable(facts, wrap.wraps)
            blob = wrap_plaintext(self._service, facts, wrap, plaintext, context)
        return Ciphertext(blob, facts.key.uri, facts.key.version, wrap.number)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        """Unwrap with exactly the version that ``key_id`` names."""
        key = self._key(key_id)
        if key.version is None:
            raise InvalidRequest(
                f"{key_id!r} names no version of the key; use what match() returns for key_uri"
            )
        return unwrap_ciphertext(self._service, key, ciphertext, context)

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        """Sign with the version of ``key_id``, or else with the current one."""
        with self._facts(self._configured_key(key_id)) as facts:
            check_message(data, facts, algorithm)
            self._check_usable(facts, "sign")
            made = sign(self._service, facts, data, algorithm)
        return Signature(made, facts.key.uri, algorithm, facts.key.version)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        """Whether the service accepts the signature."""
        with self._facts(self._key(key_id)) as facts:
            check_message(data, facts, algorithm)
            return verify(self._service, facts, data, signature.data, algorithm)

    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        """The public key, with all that the key's type and permitted operations allow."""
        facts = self._ask(self._key(key_id))
        wraps = facts.family == RSA_OAEP_256.family and facts.permits(RSA_OAEP_256.unwraps)
        usable = facts.validity.state(self._now())[0] == "enabled"
        signs = tuple(facts.signs_with) if facts.permits("sign") or facts.permits("verify") else ()
        return PublicKey(
            der=facts.public_der(),
            key_uri=facts.key.uri,
            key_version=facts.key.version,
            algorithms=(*signs, RSA_OAEP) if wraps else signs,
            wrap_alg=RSA_OAEP_256.number if wraps and usable else None,
        )

    @hookimpl
    def health(self, key_id: str) -> Health:
        """Whether the key may be used: one GET, no key material involved."""
        facts = self._ask(self._key(key_id))
        state, word = facts.validity.state(self._now())
        return Health(ok=state == "enabled", reason=f"key {facts.key} ({facts.type}) is {word}")

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        """What the service tells about the key and its versions."""
        facts = self._ask(self._key(key_id))
        return self._info(facts, versions_of(self._service, facts.key))

    @hookimpl
    def rotate_key(self, key_id: str) -> KeyInfo:
        """Make a new version, and wrap with it from now on."""
        key = self._configured_key(key_id)
        if key.version is not None:
            raise InvalidRequest(
                f"{key_id!r} is one version of a key, and stays it; "
                "configure the key without a version to rotate it"
            )
        facts = KeyFacts.of(self._service.rotate(key))
        self._known.forget(key)
        return self._info(facts, ())

    def _info(self, facts: KeyFacts, versions: tuple[str, ...]) -> KeyInfo:
        return KeyInfo(
            key_uri=facts.key.uri,
            state=facts.validity.state(self._now())[0],
            protection="hsm" if facts.in_hsm else "software",
            primary_version=facts.key.version,
            versions=versions,
        )

    def _ask(self, key: VaultKey) -> KeyFacts:
        return KeyFacts.of(self._service.get(key))

    @contextmanager
    def _facts(self, key: VaultKey) -> Iterator[KeyFacts]:
        """What is known about the key; asked for again if it turns out not to be true any more."""
        try:
            yield self._known.facts(key)
        except (KeyDisabled, KeyNotFound):
            self._known.forget(key)
            raise

    def _wrap(self, facts: KeyFacts) -> Wrap:
        """How this key wraps."""
        wrap = PREFERRED.get(facts.family)
        if self._algorithm is not None:
            wrap = next(wrap for wrap in WRAPS.values() if wrap.name == self._algorithm)
        if wrap is None or wrap.family != facts.family:
            raise InvalidRequest(
                f"key {facts.key} is {facts.type} and does not wrap with "
                f"{self._algorithm or 'anything'}; configure another key or algorithm"
            )
        return wrap

    def _check_usable(self, facts: KeyFacts, operation: str) -> None:
        facts.check_usable(operation, self._now())
        if self._hsm and not facts.in_hsm:
            raise KeyDisabled(
                f"key {facts.key} is {facts.type}, and only an HSM's key will do; "
                "configure one, or remove hsm = true"
            )

    def _key(self, key_id: str) -> VaultKey:
        """The key of an id that ``match`` gave, or of the configuration.  Others are refused."""
        key = self._ours(VaultKey.parse(key_id, self._configured.vault))
        if key is None:
            raise InvalidRequest(
                f"{key_id!r} is no key of this instance, which has {self._configured}; "
                "use what match() returns"
            )
        return key

    def _configured_key(self, key_id: str) -> VaultKey:
        """The configured key or one of its versions: no other makes anything new."""
        key = self._key(key_id)
        if not self._configured.covers(key):
            raise InvalidRequest(
                f"{key_id!r} is retired: it only opens; use the configured key, {self._configured}"
            )
        return key

    def _ours(self, key: VaultKey | None) -> VaultKey | None:
        """The key as the configuration spells it, ``None`` if it is not one of ours."""
        for known in (self._configured, *self._retired):
            if key is not None and known.covers(key):
                return evolve(known, version=key.version)
        return None
