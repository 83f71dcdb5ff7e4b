"""Reading an answer of the service: the SDK checks neither presence nor checksums.

A success whose fields are missing, altered or odd is a fault of the service or of something on the
way to it, so every reader raises ``Unavailable`` and names the field.
"""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from kms_core import Unavailable
from kms_gcp.names import KeyName


def checked(name: str, data: bytes | bytearray) -> dict[str, Any]:
    """A field of a request with its checksum, which the service compares."""
    sent = bytes(data)
    return {name: sent, f"{name}_crc32c": {"value": crc32c(sent)}}


def crc32c(data: bytes) -> int:
    """The checksum that Cloud KMS uses (RFC 3720, appendix B.4)."""
    import google_crc32c

    checksum: int = google_crc32c.value(data)
    return checksum


@frozen
class Answer:
    """One successful answer about ``key``, or a structure in it."""

    key: KeyName
    message: Any = field(repr=False)  # a protobuf message

    def blob(self, name: str, smallest: int, largest: int, checksum: str = "") -> bytes:
        """Bytes of a permitted length, and with the right checksum."""
        value: bytes = getattr(self.message, name)
        told = self._optional(checksum or f"{name}_crc32c")
        if told is None or told.value != crc32c(value):
            raise self.malformed(f"checksum of {name}")
        if not smallest <= len(value) <= largest:
            raise self.malformed(name)
        return value

    def check_received(self, *names: str) -> None:
        """Raises unless the service compared the checksums of what we sent."""
        for name in names:
            if not getattr(self.message, f"verified_{name}_crc32c"):
                raise self.malformed(f"verified_{name}_crc32c")

    def check_is_about(self, key: KeyName) -> KeyName:
        """The name in the answer, which must be that of ``key`` or of one of its versions."""
        echoed: str = self.message.name
        name = KeyName.parse(echoed)
        if name is None:
            raise self.malformed("name")
        if not key.covers(name):
            raise Unavailable(
                f"Google Cloud KMS was asked for {key} and answered for {name}; check endpoint"
            )
        return name

    def version(self) -> KeyName:
        """The version of our key that did it."""
        name = self.check_is_about(self.key)
        if name.version is None:
            raise self.malformed("name")
        return name

    def word(self, name: str) -> str:
        """The name of an enumeration's value; its number if this SDK does not know it."""
        number: int = getattr(self.message, name)
        values = self.message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number
        return values[number].name if number in values else f"{name} {number}"

    def flag(self, name: str) -> bool:
        """Yes or no."""
        value: bool = getattr(self.message, name)
        return value

    def inside(self, name: str) -> Answer | None:
        """A structure, ``None`` if there is none."""
        message = self._optional(name)
        return None if message is None else Answer(self.key, message)

    def entries(self, name: str) -> list[Answer]:
        """The structures of a list."""
        return [Answer(self.key, message) for message in getattr(self.message, name)]

    def malformed(self, name: str) -> Unavailable:
        """The error of an answer whose field ``name`` is missing or wrong."""
        return Unavailable(
            f"Google Cloud KMS answered about {self.key} without a proper {name}; "
            "check what stands between this host and the service"
        )

    def _optional(self, name: str) -> Any:
        return getattr(self.message, name) if self.message.HasField(name) else None
