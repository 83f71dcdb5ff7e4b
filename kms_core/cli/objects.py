"""JSON objects that one command writes and another reads: exactly their fields, no others."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from kms_core.errors import FormatError

MAX_JSON_BYTES: Final = 64 << 10  # several times what the largest ciphertext or signature takes

Check = Callable[[str, Any], Any]


def dump(fields: Mapping[str, Any]) -> bytes:
    """One line of JSON; ``bytes`` become base64."""
    shown = {
        name: base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value
        for name, value in fields.items()
    }
    return (json.dumps(shown) + "\n").encode("ascii")


def load(text: bytes, checks: Mapping[str, Check], what: str) -> dict[str, Any]:
    """The fields of an object; raises ``FormatError`` unless it has exactly those of ``checks``.

    ``what`` says what the text is not, should it be something else.
    """
    try:
        return _fields(text, checks)
    except FormatError as exc:
        raise FormatError(f"{what}: {exc}") from None


def _fields(text: bytes, checks: Mapping[str, Check]) -> dict[str, Any]:
    try:
        fields = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise FormatError("it is not JSON") from None
    if not isinstance(fields, dict):
        raise FormatError("it is no JSON object")
    for name in checks:
        if name not in fields:
            raise FormatError(f"{name} is missing")
    for name in fields:
        if name not in checks:
            raise FormatError(f"it has an unknown field {name!r}")
    return {name: check(name, fields[name]) for name, check in checks.items()}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise FormatError("a field is given twice")
    return fields


def string(name: str, value: Any) -> str:
    """A field that is text."""
    if not isinstance(value, str):
        raise FormatError(f"{name} is no string")
    return value


def optional_string(name: str, value: Any) -> str | None:
    """A field that is text or null."""
    return None if value is None else string(name, value)


def number(name: str, value: Any) -> int:
    """A field that is a 16-bit number."""
    if type(value) is not int or not 0 <= value <= 0xFFFF:  # True is an int as well
        raise FormatError(f"{name} is no number from 0 to 65535")
    return value


def binary(name: str, value: Any) -> bytes:
    """A field that is bytes, written as base64."""
    try:
        return base64.b64decode(string(name, value), validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{name} is not base64") from None
