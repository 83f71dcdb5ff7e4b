"""The suite of the contract, on SoftHSM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest

from kms_core import Context
from kms_core.testing import ProviderConformance
from kms_core.testing.servers import Failure, Panel
from kms_pkcs11 import module as modules

if TYPE_CHECKING:
    from kms_core.testing.servers import Gate
    from kms_core.testing.servers.softhsm import RemoteToken
    from kms_pkcs11.provider import Pkcs11Provider
    from tests.conftest import Providers

CONTEXT = Context({"tenant": "42"})
EVERY_HASH = ("SHA256", "SHA384", "SHA512")


class _Pkcs11(ProviderConformance):
    has_data_key = False
    has_sign = has_verify = has_public_key = True
    foreign_key_uri = "pkcs11:token=other;object=aes"
    plugin_module = "kms_pkcs11"
    sdk_modules = ("pkcs11", "asn1crypto")
    key: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def provider(self, make: Providers) -> Pkcs11Provider:
        return make(self.key, **self.options)

    @pytest.fixture
    def key_id(self) -> str:
        return self.key


class TestAesGcm(_Pkcs11):
    """What most tokens are used with."""

    key = "aes"

    @pytest.fixture
    def other_key(self, make: Providers) -> tuple[Pkcs11Provider, str]:
        return make("aes-old"), "aes-old"


class TestAesKwp(_Pkcs11):
    """For tokens without AES-GCM."""

    key = "aes"
    options: ClassVar[dict[str, Any]] = {"mechanism": "aes-kwp"}
    min_plaintext = 8

    @pytest.fixture
    def other_key(self, make: Providers) -> tuple[Pkcs11Provider, str]:
        return make("aes-old", mechanism="aes-kwp"), "aes-old"

    def test_same_input_wraps_differently(self, provider: Any, key_id: str) -> None:
        """Key wrap is deterministic (RFC 5649): only plaintexts that never recur are for it."""
        data_key = os.urandom(32)
        wraps = [provider.encrypt(key_id, key, CONTEXT).data for key in (data_key, data_key)]
        assert wraps[0] == wraps[1] != provider.encrypt(key_id, os.urandom(32), CONTEXT).data


class TestRsaOaep(_Pkcs11):
    """With SHA-1, the only hash that this token takes here."""

    key = "rsa"
    options: ClassVar[dict[str, Any]] = {"mechanism": "rsa-oaep-sha1"}
    max_plaintext = 256 - 2 * 20 - 2 - 32


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestRemoteToken(_Pkcs11):
    """In another process, which is killed: as if nobody listened."""

    key = "rsa"
    max_plaintext = 256 - 2 * 20 - 2 - 32

    @pytest.fixture
    def provider(
        self, remote: RemoteToken, make: Providers, monkeypatch: pytest.MonkeyPatch
    ) -> Pkcs11Provider:
        monkeypatch.setattr(modules, "PAUSE", 0.0)
        return make(self.key, module=remote.module, mechanism="rsa-oaep-sha1")

    @pytest.fixture
    def panel(self, remote: RemoteToken) -> Panel:
        return Panel(frozenset({Failure.REFUSE}), cast("Gate", Line(remote)))


class Line:
    """The gate in front of a token in another process."""

    def __init__(self, remote: RemoteToken) -> None:
        self.cut = remote.kill
        self.restore = remote.restart


class TestEcdsa(_Pkcs11):
    """A key pair on P-256."""

    key = "ec"
    encrypts = False
    signs = ("ECDSA-SHA256", "ECDSA-SHA384", "ECDSA-SHA512")


class TestEd25519(_Pkcs11):
    """A key pair that takes messages, not digests."""

    key = "ed25519"
    encrypts = False
    signs = ("Ed25519",)


class TestRsaSigning(_Pkcs11):
    """A key pair that wraps with another mechanism than the one configured."""

    key = "rsa"
    encrypts = False
    signs = tuple(f"RSA-{form}-{name}" for form in ("PSS", "PKCS1") for name in EVERY_HASH)


class TestHmac(_Pkcs11):
    """A secret key that makes MACs."""

    key = "hmac"
    encrypts = False
    signs = tuple(f"HMAC-{name}" for name in EVERY_HASH)
