"""SoftHSM for the session, one token with one key of each kind, and providers on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kms_core import Secret
from kms_core.testing.servers import SoftHsm
from kms_core.testing.servers.softhsm import RemoteToken
from kms_pkcs11.provider import Pkcs11Provider
from kms_pkcs11.settings import Pkcs11Settings

KEYS = {"aes": "AES", "aes-old": "AES", "rsa": "RSA", "ec": "EC", "ed25519": "Ed25519"}

Providers = Callable[..., Pkcs11Provider]
SettingsFor = Callable[..., Pkcs11Settings]


@pytest.fixture(scope="session")
def softhsm() -> Path:
    """The module, installed by this session where it can be."""
    # One folder for all workers of a run: they wait for each other's installation.
    folder = Path(__file__).parents[3] / "build" / "softhsm"
    try:
        return SoftHsm.install(folder)
    except FileNotFoundError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def token(softhsm: Path) -> Iterator[SoftHsm]:
    """A token that nothing is done to."""
    with SoftHsm() as made:
        for label, kind in KEYS.items():
            made.create_key(label, kind)  # type: ignore[arg-type]
        made.create_key("p384", "EC", curve="P-384")
        made.create_key("p521", "EC", curve="P-521")
        made.create_key("hmac", "HMAC", size=512)
        yield made


@pytest.fixture
def remote(token: SoftHsm) -> Iterator[RemoteToken]:
    """That token in another process, which can hang and die."""
    with ExitStack() as stack:
        try:
            remote = stack.enter_context(token.remote())
        except FileNotFoundError as exc:
            pytest.skip(str(exc))
        yield remote


@pytest.fixture
def make(settings_for: SettingsFor) -> Iterator[Providers]:
    """Providers on that token, closed in the end."""
    made: list[Pkcs11Provider] = []

    def provider(key: str = "aes", **settings: Any) -> Pkcs11Provider:
        made.append(Pkcs11Provider(settings_for(key, **settings)))
        return made[-1]

    yield provider
    for each in made:
        each.close()


@pytest.fixture
def settings_for(token: SoftHsm) -> SettingsFor:
    """The settings of an instance on that token."""

    def settings(key: str = "aes", **changes: Any) -> Pkcs11Settings:
        usual: dict[str, Any] = {
            "module": token.module,
            "token": token.token,
            "pin": Secret(token.pin),
            "protection": "software",
        }
        return Pkcs11Settings(key=key, **{**usual, **changes})

    return settings
