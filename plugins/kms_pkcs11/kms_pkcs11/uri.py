"""Key URIs: RFC 7512, in the one spelling that envelopes hold."""

from __future__ import annotations

import re
from typing import Final, Self
from urllib.parse import quote_from_bytes, unquote_to_bytes

from attrs import evolve, frozen

SCHEME: Final = "pkcs11:"
MAX_LABEL_BYTES: Final = 255
#: What may identify a key here; the other attributes of RFC 7512 say where it is, or are secret.
_KNOWN: Final = ("token", "serial", "object", "id")
_LOCATING: Final = frozenset({"slot-id", "manufacturer", "model", "type", "slot-description"})
_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNRESERVED: Final = "-._~"


@frozen
class KeyName:
    """A key in a token: by label, id or both; the token by label, serial number or both."""

    token: str = ""
    serial: str = ""
    label: str = ""
    id: bytes = b""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a ``pkcs11:`` URI in any spelling; raises ``ValueError`` saying what is wrong."""
        path, question, _ = text.removeprefix(SCHEME).partition("?")
        if not text.startswith(SCHEME):
            raise ValueError("does not begin with pkcs11:")
        if question:
            raise ValueError("has attributes after '?': module and pin are settings of their own")
        found: dict[str, bytes] = {}
        for attribute in filter(None, path.split(";")):
            name, equals, value = attribute.partition("=")
            if not equals or (name not in _KNOWN and name not in _LOCATING):
                raise ValueError(f"has an attribute {name!r} that names no key")
            if name in found:
                raise ValueError(f"has the attribute {name} twice")
            if _PERCENT.search(value) or not value.isascii():
                raise ValueError(f"has a malformed value of {name}")
            found[name] = unquote_to_bytes(value)
        return cls(
            token=_text("token", found.get("token", b"")),
            serial=_text("serial", found.get("serial", b"")),
            label=_text("object", found.get("object", b"")),
            id=found.get("id", b""),
        )

    @classmethod
    def of_uri(cls, key_uri: str) -> Self | None:
        """From the canonical spelling only; ``None`` for anything else."""
        try:
            name = cls.parse(key_uri)
        except ValueError:
            return None
        return name if name.uri == key_uri else None

    @property
    def uri(self) -> str:
        """The canonical spelling: fixed order, everything but unreserved characters encoded."""
        parts = (
            ("token", self.token.encode()),
            ("serial", self.serial.encode()),
            ("object", self.label.encode()),
        )
        text = ";".join(
            f"{name}={quote_from_bytes(value, _UNRESERVED)}" for name, value in parts if value
        )
        if not self.id:
            return f"{SCHEME}{text}"
        encoded = "".join(f"%{byte:02X}" for byte in self.id)
        return f"{SCHEME}{text};id={encoded}"

    def within(self, token: str, serial: str) -> Self:
        """The same key, its token named as given where it is not; raises if it is another one."""
        if self.token not in {"", token} or self.serial not in {"", serial}:
            raise ValueError("is in another token: give that one an instance of its own")
        return evolve(self, token=token, serial=serial)


def _text(name: str, value: bytes) -> str:
    if len(value) > MAX_LABEL_BYTES:
        raise ValueError(f"has a {name} of more than {MAX_LABEL_BYTES} bytes")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"has a {name} that is not UTF-8") from None
    if not text.isprintable():
        raise ValueError(f"has a {name} that is not printable")
    return text
