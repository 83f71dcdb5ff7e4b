"""Reading an answer of the service, whose fields nobody else checks.

A success whose fields are missing or odd is a fault of the service or of something on the way to
it, so every reader raises ``Unavailable`` and names the field.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn, Self, TypeVar

from attrs import field, frozen

from kms_azure.names import VaultKey
from kms_core import Unavailable

T = TypeVar("T")

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")
_MAX_NUMBER: Final = 1 << 53  # of an integer that every JSON reader gets right


@frozen
class Reply:
    """What came back to one request.  Names in ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@frozen
class Answer:
    """The fields of a successful answer about ``key``."""

    key: VaultKey
    fields: Mapping[str, Any] = field(repr=False)  # as JSON has them, whatever they are

    @classmethod
    def of(cls, reply: Reply, key: VaultKey) -> Self:
        """The JSON object of an answer."""
        try:
            fields = json.loads(reply.body)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            malformed(key, "JSON object")
        return cls(key, fields)

    def octets(self, name: str, size: int | None = None) -> bytes:
        """Bytes, of this size if one is given."""
        text = self.fields.get(name)
        if not isinstance(text, str) or not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
            malformed(self.key, name)
        octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if not octets or size not in {None, len(octets)}:
            malformed(self.key, name)
        return octets

    def number(self, name: str) -> int:
        """The unsigned big-endian integer of a JSON Web Key."""
        return int.from_bytes(self.octets(name))

    def text(self, name: str) -> str:
        """A word."""
        return self._typed(name, str)

    def flag(self, name: str) -> bool:
        """True or false."""
        return self._typed(name, bool)

    def moment(self, name: str) -> int | None:
        """Seconds since 1970, ``None`` if there is no such field."""
        seconds = self.fields.get(name)
        if seconds is None:
            return None
        if type(seconds) is not int or not 0 <= seconds <= _MAX_NUMBER:
            malformed(self.key, name)
        return seconds

    def words(self, name: str) -> frozenset[str]:
        """A list of words."""
        return frozenset(word for word in self._typed(name, list) if isinstance(word, str))

    def inside(self, name: str) -> Answer:
        """The fields of an object."""
        return Answer(self.key, self._typed(name, dict))

    def items(self, name: str) -> list[Answer]:
        """The objects of a list."""
        items = self._typed(name, list)
        if not all(isinstance(item, dict) for item in items):
            malformed(self.key, name)
        return [Answer(self.key, item) for item in items]

    def kid(self) -> VaultKey:
        """The exact version that the answer is about; raises unless it is one of ``key``."""
        kid = self.text("kid")
        named = VaultKey.of_identifier(kid)
        if named is None or named.version is None:
            malformed(self.key, "kid")
        if not self.key.covers(named):
            raise Unavailable(
                f"Azure was asked for {self.key} and answered for {named}; check vault_url and "
                "what stands between this host and the vault"
            )
        return named

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self.fields.get(name)
        if type(value) is not kind:
            malformed(self.key, name)
        return value


def malformed(key: VaultKey, name: str) -> NoReturn:
    """Raise the error of an answer whose field ``name`` is missing or wrong."""
    raise Unavailable(
        f"Azure answered about {key} without a proper {name}; "
        "check what stands between this host and the vault"
    )


def encoded(octets: bytes | bytearray) -> str:
    """Bytes as the service wants them: base64url without padding."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
