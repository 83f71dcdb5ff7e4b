"""What the service tells about a key: its state, its versions, and how it is rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kms_core import (
    AccessDenied,
    Health,
    InvalidRequest,
    KeyDisabled,
    KeyInfo,
    KeyState,
    KMSError,
    Protection,
    ServiceError,
)
from kms_gcp.algorithms import WRAP_SYMMETRIC
from kms_gcp.answer import Answer
from kms_gcp.keys import Keys, Version
from kms_gcp.names import KeyName
from kms_gcp.service import Service

_SYMMETRIC: Final = "ENCRYPT_DECRYPT"
_STATES: Final[Mapping[str, KeyState]] = {
    "ENABLED": "enabled",
    "DISABLED": "disabled",
    "DESTROY_SCHEDULED": "disabled",  # until it is destroyed, restoring brings it back
    "PENDING_GENERATION": "pending",
    "PENDING_IMPORT": "pending",
    "DESTROYED": "destroyed",
    "PENDING_EXTERNAL_DESTRUCTION": "destroyed",
}
#: Where an external key manager keeps its keys is not for Google to vouch for.
_HARDWARE: Final = frozenset({"HSM", "HSM_SINGLE_TENANT"})
_THERE: Final = frozenset({"ENABLED", "DISABLED", "DESTROY_SCHEDULED"})


class Description:
    """What ``health``, ``describe_key`` and ``rotate_key`` do with a key of this instance."""

    def __init__(self, keys: Keys, service: Service) -> None:
        self._keys = keys
        self._service = service

    def health(self, key: KeyName) -> Health:
        """Whether the key may be used, by one request; by two the first time, for some keys."""
        if key.version is not None:
            return _health(self._keys.version(key))
        known = self._keys.known(key)
        if known is None or known.wrap_alg == WRAP_SYMMETRIC:
            answer = self._crypto_key(key)
            if answer.word("purpose") == _SYMMETRIC:
                return _health_of_primary(key, self._primary(answer))
        try:
            return _health(self._keys.newest(key))
        except KeyDisabled as exc:
            return Health(ok=False, reason=str(exc))

    def describe(self, key: KeyName) -> KeyInfo:
        """State and versions; for a key without a primary version, of the newest enabled one."""
        if key.version is not None:
            return _described(key, self._keys.version(key))
        answer = self._crypto_key(key)
        symmetric = answer.word("purpose") == _SYMMETRIC
        if symmetric:
            versions, primary = self._versions_if_told(key), self._primary(answer)
        else:
            versions = list(self._keys.versions(key))
            primary = _newest_enabled(versions)
        return KeyInfo(
            key_uri=key.uri,
            state=_STATES.get(primary.state, "unknown") if primary else "disabled",
            protection=_protection(_template_protection(answer)),
            primary_version=primary.name.version if primary else None,
            versions=_in_order(versions, primary),
            region=key.location,
            rotation=answer.inside("rotation_period") is not None if symmetric else None,
        )

    def rotate(self, key: KeyName) -> KeyInfo:
        """Make a new version, and make it primary if the key has such a thing.

        Once the version is made only ``ServiceError`` is raised, which nobody retries: each try
        would make another one.
        """
        if key.version is not None:
            raise InvalidRequest(
                f"{key} is one version and cannot be rotated; configure the key without a version"
            )
        symmetric = self._crypto_key(key).word("purpose") == _SYMMETRIC
        answer = self._service.ask(
            "CreateCryptoKeyVersion", key, parent=str(key), crypto_key_version={}
        )
        made = self._keys.read(answer)
        self._keys.forget_newest(key)
        try:
            if symmetric:
                self._make_primary(made)
            return self.describe(key)
        except KMSError as exc:
            raise ServiceError(
                f"{made.name} was made and is {made.state}, but is not in use yet "
                f"({type(exc).__name__}); look at the key before rotating again"
            ) from exc

    def _make_primary(self, made: Version) -> None:
        if made.state != "ENABLED":
            raise KeyDisabled(f"{made.name} is {made.state}; make it primary when it is ENABLED")
        key = made.name.parent
        answer = self._service.ask(
            "UpdateCryptoKeyPrimaryVersion", key, crypto_key_version_id=made.name.version
        )
        answer.check_is_about(key)

    def _crypto_key(self, key: KeyName) -> Answer:
        answer = self._service.ask("GetCryptoKey", key)
        if answer.check_is_about(key) != key:
            raise answer.malformed("name")
        return answer

    def _primary(self, answer: Answer) -> Version | None:
        primary = answer.inside("primary")
        return None if primary is None else self._keys.read(primary)

    def _versions_if_told(self, key: KeyName) -> list[Version]:
        """Empty if asking for them is not permitted; the description does without then."""
        try:
            return list(self._keys.versions(key))
        except AccessDenied:
            return []


def _health_of_primary(key: KeyName, primary: Version | None) -> Health:
    if primary is None:
        return Health(ok=False, reason=f"{key} has no primary version")
    return _health(primary)


def _health(version: Version) -> Health:
    shown = f"{version.name} ({version.algorithm})"
    if not version.algorithm.is_usable:
        return Health(ok=False, reason=f"{shown} is of a kind for which there is no use here")
    return Health(ok=version.state == "ENABLED", reason=f"{shown} is {version.state}")


def _described(key: KeyName, version: Version) -> KeyInfo:
    return KeyInfo(
        key_uri=key.uri,
        state=_STATES.get(version.state, "unknown"),
        protection=_protection(version.protection),
        primary_version=key.version,
        versions=(str(version.number),),
        region=key.location,
    )


def _in_order(versions: list[Version], primary: Version | None) -> tuple[str, ...]:
    """Oldest first, those that still exist, and the primary one even if the list lacks it."""
    numbers = {version.number for version in versions if version.state in _THERE}
    if versions and primary is not None:
        numbers.add(primary.number)
    return tuple(str(number) for number in sorted(numbers))


def _newest_enabled(versions: list[Version]) -> Version | None:
    enabled = (version for version in versions if version.state == "ENABLED")
    return max(enabled, key=lambda version: version.number, default=None)


def _template_protection(answer: Answer) -> str:
    template = answer.inside("version_template")
    return template.word("protection_level") if template else ""


def _protection(level: str) -> Protection:
    return "hsm" if level in _HARDWARE else "software"
