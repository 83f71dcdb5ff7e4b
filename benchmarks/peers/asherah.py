"""Asherah with its Rust core: a data key a message, under a key that the session keeps.

Static key service and metastore in memory, so no service takes part; neither can be slowed down,
so there is no herd to be seen.
"""

from __future__ import annotations

from functools import partial

from benchmarks.peer import CONTEXT, Variant, Vault

NAME = "asherah"
REQUIREMENTS = ("asherah==0.5.56",)
STATEMENT = "import asherah"


def _vault() -> Vault:
    import asherah  # type: ignore[import-not-found]

    factory = asherah.SessionFactory(
        {
            "ServiceName": "benchmarks",
            "ProductID": "benchmarks",
            "Metastore": "memory",
            "KMS": "static",
            "StaticMasterKeyHex": "22" * 32,
        }
    )
    session = factory.get_session(CONTEXT["tenant"])
    return Vault(
        sealing=lambda data: partial(session.encrypt_bytes, data),
        opening=lambda record: partial(session.decrypt_bytes, record),
    )


VARIANTS = (
    Variant(
        "asherah, session kept",
        "envelope in JSON and base64, a data key a message under a cached key; binds no context",
        envelope=True,
        cached=_vault,
    ),
)
