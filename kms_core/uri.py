"""Key URIs: the names by which recipients are matched.  They are never dereferenced."""

from __future__ import annotations

import re
from typing import Final

from kms_core.errors import FormatError

MAX_KEY_URI_BYTES: Final = 1024  # longer than any service's names; bounds an unauthenticated header
_VISIBLE_ASCII = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_KEY_URI_BYTES)
_TYPE = re.compile(r"([a-z][a-z0-9-]*):")


def encode_key_uri(key_uri: str) -> bytes:
    """The bytes stored in a recipient; raises ``FormatError`` unless 1..1024 visible ASCII."""
    data = key_uri.encode("utf-8", "surrogatepass")
    check_key_uri(data)
    return data


def check_key_uri(data: bytes) -> str:
    """The URI in ``data``; raises ``FormatError`` unless it is 1..1024 bytes of visible ASCII."""
    if not _VISIBLE_ASCII.fullmatch(data):
        raise FormatError("a key URI is empty, too long or not visible ASCII")
    return data.decode("ascii")


def provider_type(key_uri: str) -> str:
    """The provider type a URI belongs to: what stands before its first colon, or ``""``."""
    match = _TYPE.match(key_uri)
    return match[1] if match else ""
