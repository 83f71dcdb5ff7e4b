"""Names of vaults and of the keys in them, with or without a version.

Azure takes no notice of case in the names of vaults and keys, so neither does equality here; a key
URI has the one spelling in lower case.  Nothing here asks the service.
"""

from __future__ import annotations

import re
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

from attrs import evolve, field, frozen

SCHEME: Final = "azure-keyvault://"

_DEFAULT_PORT: Final = ":443"
_AUTHORITY: Final = re.compile(
    r"(?:[a-z0-9][a-z0-9.-]{0,252}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
_NAME: Final = r"([0-9a-zA-Z-]{1,127})(?:/([0-9a-f]{32}))?"
_LOCAL: Final = re.compile(_NAME)
_FULL: Final = re.compile(rf"([^/]+)/keys/{_NAME}")


def split_https(url: str) -> SplitResult | None:
    """The parts of an ``https://`` URL that holds no user and no query, else ``None``."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises unless it is a number in range
    except ValueError:
        return None
    plain = parts.scheme == "https" and not (parts.query or parts.fragment or "@" in parts.netloc)
    return parts if plain and _authority(parts.netloc) else None


def vault_of(url: str) -> str | None:
    """Host and port of a vault's URL in their canonical form; ``None`` if it is not such a URL."""
    parts = split_https(url)
    return _authority(parts.netloc) if parts and parts.path in {"", "/"} else None


def _authority(netloc: str) -> str | None:
    authority = netloc.lower().removesuffix(_DEFAULT_PORT)
    return authority if _AUTHORITY.fullmatch(authority) else None


@frozen
class VaultKey:
    """A key in a vault; without a version it stands for whichever is current."""

    vault: str
    name: str = field(eq=str.lower)
    version: str | None = None

    @classmethod
    def parse(cls, text: str, vault: str | None) -> Self | None:
        """The key that ``NAME``, ``NAME/VERSION`` or a key identifier with ``https://`` names."""
        if text.startswith("https://"):
            return cls.of_identifier(text)
        match = _LOCAL.fullmatch(text)
        return cls(vault, match[1], match[2]) if match and vault else None

    @classmethod
    def of_identifier(cls, kid: str) -> Self | None:
        """The key that an identifier of the service names, ``None`` if it is not one."""
        parts = split_https(kid)
        return cls._of(f"{_authority(parts.netloc)}{parts.path}") if parts else None

    @classmethod
    def of_uri(cls, key_uri: str) -> Self | None:
        """The key of a canonical key URI, ``None`` for any other text."""
        key = cls._of(key_uri.removeprefix(SCHEME))
        return key if key is not None and key.uri == key_uri else None

    @classmethod
    def _of(cls, text: str) -> Self | None:
        match = _FULL.fullmatch(text)
        if match is None or (vault := _authority(match[1])) is None:
            return None
        return cls(vault, match[2], match[3])

    @property
    def key_id(self) -> str:
        """What hooks are given: ``NAME``, or ``NAME/VERSION``."""
        return self.name if self.version is None else f"{self.name}/{self.version}"

    @property
    def path(self) -> str:
        """Where the service has it."""
        return f"/keys/{self.key_id}"

    @property
    def uri(self) -> str:
        """The key URI; envelopes carry it with the version."""
        return f"{SCHEME}{self.vault}{self.path.lower()}"

    def covers(self, key: VaultKey) -> bool:
        """Whether ``key`` is this one, or one of its versions."""
        return key == self or (self.version is None and evolve(key, version=None) == self)

    def __str__(self) -> str:
        return f"https://{self.vault}{self.path}"
