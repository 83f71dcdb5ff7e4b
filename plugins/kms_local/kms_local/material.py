"""Key material at rest: bare, or sealed under a key that comes from a passphrase.

Sealed material is AES-256-GCM, IV || ciphertext || tag, with the version's key URI as associated
data: it cannot pass for another version, another key or another store.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from kms_core import AccessDenied, Secret, wipe
from kms_local.layout import KEY_BYTES, Kdf

IV_BYTES: Final = 12  # the size NIST SP 800-38D, section 8.2, recommends
TAG_BYTES: Final = 16


def derive(passphrase: Secret, kdf: Kdf) -> bytearray:
    """The sealing key; slow and memory-hungry on purpose."""
    scrypt = Scrypt(salt=kdf.salt, length=KEY_BYTES, n=kdf.n, r=kdf.r, p=kdf.p)
    key = bytearray(KEY_BYTES)
    scrypt.derive_into(_utf8(passphrase), key)
    return key


def seal(sealing_key: bytes | bytearray | None, material: bytes, key_uri: str) -> bytes:
    """What goes into the file; without a sealing key the material itself."""
    if sealing_key is None:
        return material
    iv = os.urandom(IV_BYTES)
    return iv + AESGCM(sealing_key).encrypt(iv, material, key_uri.encode("ascii"))


def unseal(sealing_key: bytes | bytearray | None, stored: bytes, key_uri: str) -> bytearray:
    """The material, for the caller to wipe.

    Raises ``InvalidTag`` (of ``cryptography``) under a wrong sealing key.
    """
    if sealing_key is None:
        return bytearray(stored)
    material = bytearray(KEY_BYTES)
    iv, sealed = stored[:IV_BYTES], stored[IV_BYTES:]
    AESGCM(sealing_key).decrypt_into(iv, sealed, key_uri.encode("ascii"), material)
    return material


def opens(sealing_key: bytes | bytearray | None, stored: bytes, key_uri: str) -> bool:
    """Whether the sealing key fits."""
    try:
        wipe(unseal(sealing_key, stored, key_uri))
    except InvalidTag:
        return False
    return True


def _utf8(passphrase: Secret) -> bytes:
    with contextlib.suppress(UnicodeEncodeError):
        return passphrase.reveal().encode("utf-8")
    # Raised out here, because the codec's own error carries the passphrase along.
    raise AccessDenied("the passphrase is not Unicode text; check where it comes from")
