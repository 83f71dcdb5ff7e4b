"""Names of CryptoKeys and their versions, as a configuration, the service and envelopes have them.

The patterns are anchored: the SDK's own take the name of a version for the name of a key.  Nothing
here asks the service.
"""

from __future__ import annotations

import re
from typing import Final, Self

from attrs import evolve, frozen

SCHEME: Final = "gcp-kms://"

# A project's id, not its number: the service answers with ids, and a key has one name only.
_PROJECT: Final = r"(?:[a-z0-9][a-z0-9.-]{0,61}[a-z0-9]:)?[a-z][a-z0-9-]{2,61}[a-z0-9]"
_LOCATION: Final = r"[a-z][a-z0-9-]{0,62}"
_ID: Final = r"[a-zA-Z0-9_-]{1,63}"
_VERSION: Final = r"[1-9][0-9]{0,9}"

_IS_PROJECT: Final = re.compile(_PROJECT)
_SHORT: Final = re.compile(rf"({_LOCATION})/({_ID})/({_ID})(?:/({_VERSION}))?")
_FULL: Final = re.compile(
    rf"projects/({_PROJECT})/locations/({_LOCATION})/keyRings/({_ID})/cryptoKeys/({_ID})"
    rf"(?:/cryptoKeyVersions/({_VERSION}))?"
)


def is_project(text: str) -> bool:
    """Whether ``text`` has the form of a project's id."""
    return _IS_PROJECT.fullmatch(text) is not None


@frozen
class KeyName:
    """A CryptoKey, or with ``version`` one of its versions."""

    project: str
    location: str
    ring: str
    key: str
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The key or version of this resource name; ``None`` if it is not one."""
        match = _FULL.fullmatch(text)
        return cls(match[1], match[2], match[3], match[4], match[5]) if match else None

    @classmethod
    def of_uri(cls, key_uri: str) -> Self | None:
        """The key or version that a key URI names; ``None`` for any other text."""
        return cls.parse(key_uri.removeprefix(SCHEME)) if key_uri.startswith(SCHEME) else None

    @classmethod
    def configured(cls, text: str, project: str | None) -> Self:
        """What a configuration names; raises ``ValueError`` that names the field which is wrong."""
        if project is not None and not is_project(project):
            raise ValueError(f"project: {project!r} is not the id of a project (its number is not)")
        if name := cls.parse(text):
            if project not in {None, name.project}:
                raise ValueError(f"project: {project!r} is not that of key, {name.project!r}")
            return name
        short = _SHORT.fullmatch(text)
        if short is None:
            raise ValueError(
                f"key: {text!r} is neither LOCATION/KEYRING/KEY[/VERSION] nor a full name, "
                "projects/ID/locations/…/keyRings/…/cryptoKeys/…[/cryptoKeyVersions/NUMBER]"
            )
        if project is None:
            raise ValueError("project: is missing, and key is not a full name that would tell it")
        return cls(project, short[1], short[2], short[3], short[4])

    @property
    def parent(self) -> Self:
        """The CryptoKey."""
        return evolve(self, version=None)

    @property
    def uri(self) -> str:
        """The key URI; envelopes carry it with the version."""
        return f"{SCHEME}{self}"

    def covers(self, name: KeyName) -> bool:
        """Whether ``name`` is this key or version, or a version of this key."""
        return name == self or (self.version is None and name.parent == self)

    def __str__(self) -> str:
        key = (
            f"projects/{self.project}/locations/{self.location}"
            f"/keyRings/{self.ring}/cryptoKeys/{self.key}"
        )
        return key if self.version is None else f"{key}/cryptoKeyVersions/{self.version}"
