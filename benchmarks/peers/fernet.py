"""Fernet of ``cryptography``: AES-128-CBC with HMAC-SHA-256, no envelope, no context."""

from __future__ import annotations

from functools import partial

from benchmarks.peer import Variant, Vault

NAME = "fernet"
REQUIREMENTS = ("cryptography==50.0.2",)
STATEMENT = "from cryptography.fernet import Fernet"


def _vault() -> Vault:
    from cryptography.fernet import Fernet

    fernet = Fernet(Fernet.generate_key())
    return Vault(
        sealing=lambda data: partial(fernet.encrypt, data),
        opening=lambda token: partial(fernet.decrypt, token),
    )


VARIANTS = (
    Variant(
        "Fernet",
        "one key, AES-128-CBC and HMAC, base64; binds no context",
        envelope=False,
        cached=_vault,
    ),
)
