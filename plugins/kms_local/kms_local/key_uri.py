"""The names of local keys: ``local://<store id>/<key>/<version>``, each with one spelling.

A key URI travels inside ciphertexts.  It is compared, never followed: it holds no path.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

#: What a key may be called.  Safe in a URI, in a shell and on a line of its own.
KEY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY_NAME_RULE: Final = (
    "1 to 64 letters, digits, dots, hyphens and underscores, with a letter or digit in front"
)
STORE_ID: Final = re.compile(r"[0-9a-f]{16}")
VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")

_URI: Final = re.compile(
    rf"local://({STORE_ID.pattern})/({KEY_NAME.pattern})(?:/({VERSION.pattern}))?"
)


@frozen
class KeyRef:
    """One key of one store; ``version`` is ``None`` where the key as a whole is meant."""

    store_id: str
    key: str
    version: int | None = None

    @classmethod
    def parse(cls, key_uri: str) -> KeyRef | None:
        """What a URI names; ``None`` for anything but the canonical spelling."""
        found = _URI.fullmatch(key_uri)
        if found is None:
            return None
        store_id, key, version = found.groups()
        return cls(store_id, key, None if version is None else int(version))

    @property
    def key_id(self) -> str:
        """The part within the store: ``<key>/<version>`` or ``<key>``."""
        return self.key if self.version is None else f"{self.key}/{self.version}"

    @property
    def uri(self) -> str:
        """The canonical spelling."""
        return f"local://{self.store_id}/{self.key_id}"
