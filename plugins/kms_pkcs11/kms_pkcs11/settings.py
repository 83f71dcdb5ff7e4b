"""What an instance of type ``pkcs11`` is configured with, and what makes no sense."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from attrs import field, frozen, validators

from kms_core import Secret
from kms_pkcs11.uri import SCHEME, KeyName

MAX_SESSIONS: Final = 64  # far more than a token has use for

Mechanism = Literal["aes-gcm", "aes-kwp", "rsa-oaep-sha256", "rsa-oaep-sha1"]

_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2}){1,127}")


@frozen
class Pkcs11Settings:
    """One key in a PKCS#11 token.

    ``module``: the vendor's library, an absolute path.  ``token``: the token's label;
    ``token_serial`` where labels are not unique.  ``pin``: of the user; a module that knows no
    login has none.  ``key``: the label, or an RFC 7512 URI; ``key_id``: its CKA_ID in hexadecimal.
    ``also_open``: labels or URIs of retired keys in the same token.
    ``mechanism``: how data keys are wrapped.  ``gcm_iv``: who makes the IV: the ``caller``, or the
    ``module``, which writes it into our buffer (AWS CloudHSM) or leaves it ``appended`` to the
    ciphertext (Thales Luna in FIPS mode).  ``gcm_mechanism``: a vendor's number for AES-GCM.
    ``locking``: ``global`` lets one thread at a time into the module, which is safe with all;
    ``os`` has it lock for itself, and ``module`` trusts that it does without being told.
    ``rw_sessions``: for modules without read-only sessions.  ``protection``: what the token is.
    """

    module: Path
    key: str = ""
    token: str = ""
    token_serial: str = ""
    pin: Secret | None = None
    key_id: str = ""
    also_open: tuple[str, ...] = ()
    mechanism: Mechanism = "aes-gcm"
    gcm_iv: Literal["caller", "module", "appended"] = "caller"
    gcm_mechanism: int | None = field(
        default=None, validator=validators.optional(validators.in_(range(1, 1 << 32)))
    )
    locking: Literal["global", "os", "module"] = "global"
    rw_sessions: bool = False
    max_sessions: int = field(default=8, validator=(validators.ge(1), validators.le(MAX_SESSIONS)))
    protection: Literal["hsm", "software"] = "hsm"

    def __attrs_post_init__(self) -> None:
        if not self.module.is_absolute():
            raise ValueError("module: must be an absolute path")
        if self.key_id and not _HEX.fullmatch(self.key_id):
            raise ValueError("key_id: must be bytes in hexadecimal, such as 0a10")
        if self.gcm_mechanism is not None and self.mechanism != "aes-gcm":
            raise ValueError("gcm_mechanism: is of no use with this mechanism")
        if self.gcm_iv != "caller" and self.mechanism != "aes-gcm":
            raise ValueError("gcm_iv: is of no use with this mechanism")
        name = self.name
        if not (name.token or name.serial):
            raise ValueError("token: name the token by its label, or token_serial")
        if not (name.label or name.id):
            raise ValueError("key: name the key by its label, a pkcs11: URI or key_id")
        _ = self.retired

    @property
    def name(self) -> KeyName:
        """The key to wrap with."""
        given = self._parsed("key", self.key)
        key_id = bytes.fromhex(self.key_id)
        if given.id and key_id and given.id != key_id:
            raise ValueError("key_id: contradicts the id in key")
        name = KeyName(given.token, given.serial, given.label, given.id or key_id)
        try:
            return name.within(self.token or given.token, self.token_serial or given.serial)
        except ValueError:
            raise ValueError("token: contradicts the token in key") from None

    @property
    def retired(self) -> frozenset[KeyName]:
        """Keys that go on unwrapping."""
        ours = self.name
        names = set()
        for text in self.also_open:
            try:
                names.add(self._parsed("also_open", text).within(ours.token, ours.serial))
            except ValueError as exc:
                message = str(exc)
                raise ValueError(
                    message if message.startswith("also_open") else f"also_open: {text!r} {message}"
                ) from None
        return frozenset(names)

    def _parsed(self, setting: str, text: str) -> KeyName:
        if not text.startswith(SCHEME):
            return KeyName(label=text)
        try:
            return KeyName.parse(text)
        except ValueError as exc:
            raise ValueError(f"{setting}: {exc}") from None
