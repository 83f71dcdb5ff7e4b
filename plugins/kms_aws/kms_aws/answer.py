"""Reading an answer of the service: the SDK checks neither presence nor type nor length.

A success whose fields are missing or odd is a fault of the service or of something on the way to
it, so every reader raises ``Unavailable`` and names the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from attrs import field, frozen

from kms_aws.names import KeyArn
from kms_core import Unavailable

_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


@frozen
class Answer:
    """The fields of one successful answer about ``key``."""

    key: str
    fields: Mapping[str, Any] = field(repr=False)  # as the SDK parsed them, whatever they are

    def blob(self, name: str, smallest: int, largest: int) -> bytes:
        """Bytes of a permitted length."""
        value = self.fields.get(name)
        if not isinstance(value, bytes) or not smallest <= len(value) <= largest:
            raise self.malformed(name)
        return value

    def arn(self, name: str) -> KeyArn:
        """The ARN of a key."""
        value = self.fields.get(name)
        arn = KeyArn.parse(value) if isinstance(value, str) else None
        if arn is None:
            raise self.malformed(name)
        return arn

    def word(self, name: str) -> str | None:
        """An identifier, ``None`` if the service did not send it."""
        value = self.fields.get(name)
        if value is not None and not (isinstance(value, str) and _WORD.fullmatch(value)):
            raise self.malformed(name)
        return value

    def inside(self, name: str) -> Answer:
        """The fields of a structure."""
        value = self.fields.get(name)
        if not isinstance(value, Mapping):
            raise self.malformed(name)
        return Answer(self.key, value)

    def text(self, name: str) -> str:
        """Text that only the service has to understand."""
        value = self.fields.get(name)
        if not (isinstance(value, str) and value):
            raise self.malformed(name)
        return value

    def moment(self, name: str) -> datetime | None:
        """A point in time, ``None`` if the service did not send it."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, datetime):
            raise self.malformed(name)
        return value

    def flag(self, name: str) -> bool:
        """Yes or no."""
        value = self.fields.get(name)
        if not isinstance(value, bool):
            raise self.malformed(name)
        return value

    def entries(self, name: str) -> list[Answer]:
        """The structures of a list."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            raise self.malformed(name)
        return [Answer(self.key, entry) for entry in value]

    def check_algorithm(self, name: str, expected: str) -> None:
        """Raises unless the service used the algorithm we asked for, or does not say."""
        if self.word(name) not in {None, expected}:
            raise self.malformed(name)

    def malformed(self, name: str) -> Unavailable:
        """The error of an answer whose field ``name`` is missing or wrong."""
        return Unavailable(
            f"AWS KMS answered about {self.key} without a proper {name}; "
            "check what stands between this host and the service"
        )
