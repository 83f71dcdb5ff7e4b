"""The suite of the contract, for each of the ways in which keys of Azure wrap and sign."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from kms_core import Context, Duration, InvalidRequest
from kms_core.testing import ProviderConformance, call

if TYPE_CHECKING:
    from kms_azure.provider import AzureKeyVaultProvider
    from kms_core.testing.servers import AzureServer, Panel
    from tests.conftest import Providers

KEY = "kek"
OTHER = "another-kek"
SIGNER = "signer"
WRAPPING = ("wrapKey", "unwrapKey")
SIGNING = ("sign", "verify")
ATTEMPT_TIMEOUT = Duration(1.0)
PATIENCE = Duration(30.0)  # where nothing hangs: the server takes its time to make an RSA key
CURVE_OF = {"ECDSA-SHA256": "P-256", "ECDSA-SHA384": "P-384", "ECDSA-SHA512": "P-521"}

Instance = tuple["AzureKeyVaultProvider", str]


class _Azure(ProviderConformance):
    foreign_key_uri = f"azure-keyvault://elsewhere.vault.azure.net/keys/{KEY}/{'0' * 32}"
    has_data_key = False  # the core draws it: the service has no such operation
    rotates = True
    has_sign = True
    has_verify = True
    has_public_key = True
    attempt_timeout = ATTEMPT_TIMEOUT
    operations: ClassVar[Mapping[str, str]] = {
        "encrypt": "wrapkey",
        "decrypt": "unwrapkey",
        "sign": "sign",
        "verify": "verify",
        "health": "get",
        "public_key": "get",
    }
    says_retry_after = True
    decrypt_names_key = True
    plugin_module = "kms_azure"
    sdk_modules = ("azure", "msal", "requests", "urllib3")
    altered_bytes = 100

    @pytest.fixture
    def server(self, vault: AzureServer) -> AzureServer:
        return vault

    @pytest.fixture
    def panel(self, server: AzureServer) -> Panel:
        return server.panel

    @pytest.fixture
    def key_id(self) -> str:
        return KEY

    @pytest.fixture
    def rotate_signing_key(self, signing_key: Instance) -> Callable[[], object]:
        provider, key_id = signing_key
        return partial(provider.rotate_key, key_id)


class TestRsa(_Azure):
    """A software key of a vault: RSA-OAEP-256 of the digest of the context and the plaintext."""

    max_plaintext = 158
    wraps_offline = True
    signs: ClassVar[tuple[str, ...]] = ("RSA-PSS-SHA256", "RSA-PKCS1-SHA512")

    @pytest.fixture
    def provider(self, server: AzureServer, make: Providers) -> AzureKeyVaultProvider:
        server.create_key(KEY, operations=WRAPPING)
        return make(server, attempt_timeout=ATTEMPT_TIMEOUT)

    @pytest.fixture
    def other_key(self, server: AzureServer, make: Providers) -> Instance:
        server.create_key(OTHER)
        return make(server, OTHER), OTHER

    @pytest.fixture
    def signing_key(self, server: AzureServer, make: Providers) -> Instance:
        server.create_key(SIGNER, operations=SIGNING)
        return make(server, SIGNER, attempt_timeout=ATTEMPT_TIMEOUT), SIGNER


class TestRsaOfAnHsm(TestRsa):
    """A key of 3072 bits that is held by an HSM."""

    max_plaintext = 286
    signs: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture
    def panel(self) -> None:
        """``TestRsa`` fails in the same ways."""

    @pytest.fixture
    def provider(self, server: AzureServer, make: Providers) -> AzureKeyVaultProvider:
        server.create_key(KEY, "RSA-HSM", size=3072, operations=WRAPPING)
        return make(server, hsm=True, attempt_timeout=PATIENCE)


class TestPinnedVersion(TestRsa):
    """A configured version stays the one that wraps and signs."""

    may_rotate = False
    signs: ClassVar[tuple[str, ...]] = ("RSA-PSS-SHA384",)

    @pytest.fixture
    def panel(self) -> None:
        """``TestRsa`` fails in the same ways."""

    @pytest.fixture
    def key_id(self, server: AzureServer) -> str:
        return f"{KEY}/{server.create_key(KEY, operations=WRAPPING)}"

    @pytest.fixture
    def provider(self, server: AzureServer, make: Providers, key_id: str) -> AzureKeyVaultProvider:
        return make(server, key_id, attempt_timeout=PATIENCE)

    @pytest.fixture
    def signing_key(self, server: AzureServer, make: Providers) -> Instance:
        key_id = f"{SIGNER}/{server.create_key(SIGNER, operations=SIGNING)}"
        return make(server, key_id, attempt_timeout=PATIENCE), key_id

    @pytest.fixture
    def rotate_signing_key(self, server: AzureServer) -> Callable[[], object]:
        return partial(server.create_key, SIGNER, operations=SIGNING)

    def test_rotation_is_refused(self, provider: Any, key_id: str) -> None:
        """There is nothing to rotate."""
        with pytest.raises(InvalidRequest, match="without a version"):
            call(provider, "rotate_key", key_id=key_id)


class TestGcm(_Azure):
    """A symmetric key of a Managed HSM: A256GCM with the context as associated data."""

    operations: ClassVar[Mapping[str, str]] = {
        **_Azure.operations,
        "encrypt": "encrypt",
        "decrypt": "decrypt",
    }
    signs: ClassVar[tuple[str, ...]] = ("HMAC-SHA256", "HMAC-SHA384", "HMAC-SHA512")

    @pytest.fixture
    def server(self, hsm: AzureServer) -> AzureServer:
        return hsm

    @pytest.fixture
    def provider(self, server: AzureServer, make: Providers) -> AzureKeyVaultProvider:
        server.create_key(KEY, "oct-HSM")
        return make(server, attempt_timeout=ATTEMPT_TIMEOUT)

    @pytest.fixture
    def other_key(self, server: AzureServer, make: Providers) -> Instance:
        server.create_key(OTHER, "oct-HSM")
        return make(server, OTHER), OTHER

    @pytest.fixture
    def signing_key(self, server: AzureServer, make: Providers) -> Instance:
        server.create_key(SIGNER, "oct-HSM", operations=SIGNING)
        return make(server, SIGNER, attempt_timeout=ATTEMPT_TIMEOUT), SIGNER


class TestKeyWrap(TestGcm):
    """The same key with A256KW, which takes whole blocks and has no randomness."""

    operations = _Azure.operations
    min_plaintext = 8
    signs: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture
    def panel(self) -> None:
        """Its faults are those of the class above."""

    @pytest.fixture
    def provider(self, server: AzureServer, make: Providers) -> AzureKeyVaultProvider:
        server.create_key(KEY, "oct-HSM")
        return make(server, algorithm="A256KW", attempt_timeout=ATTEMPT_TIMEOUT)

    @pytest.fixture
    def other_key(self, server: AzureServer, make: Providers) -> Instance:
        server.create_key(OTHER, "oct-HSM")
        return make(server, OTHER, algorithm="A256KW"), OTHER

    def test_same_input_wraps_differently(self, provider: Any, key_id: str) -> None:
        """Key wrap is deterministic (RFC 3394): only plaintexts that never recur are for it."""

        def wrap(plaintext: bytes) -> bytes:
            context = Context({"tenant": "42"})
            wrapped: bytes = call(
                provider, "encrypt", key_id=key_id, plaintext=plaintext, context=context
            ).data
            return wrapped

        data_key = os.urandom(32)
        assert wrap(data_key) == wrap(data_key)
        assert wrap(data_key) != wrap(os.urandom(32))


class TestEllipticCurves(_Azure):
    """Keys that sign and do nothing else, one for each algorithm."""

    encrypts = False
    signs: ClassVar[tuple[str, ...]] = tuple(CURVE_OF)

    @pytest.fixture
    def provider(self, server: AzureServer, make: Providers) -> AzureKeyVaultProvider:
        server.create_key(KEY, "EC")
        return make(server, attempt_timeout=ATTEMPT_TIMEOUT)

    @pytest.fixture
    def signing_key(self, server: AzureServer, make: Providers, algorithm: str) -> Instance:
        server.create_key(SIGNER, "EC", curve=CURVE_OF[algorithm])
        return make(server, SIGNER, attempt_timeout=ATTEMPT_TIMEOUT), SIGNER


class TestKoblitzCurve(TestEllipticCurves):
    """The curve that blockchains use, in an HSM."""

    signs: ClassVar[tuple[str, ...]] = ("ECDSA-SHA256",)

    @pytest.fixture
    def panel(self) -> None:
        """Its faults are those of the class above."""

    @pytest.fixture
    def signing_key(self, server: AzureServer, make: Providers, algorithm: str) -> Instance:
        server.create_key(SIGNER, "EC-HSM", curve="P-256K")
        return make(server, SIGNER, attempt_timeout=ATTEMPT_TIMEOUT), SIGNER
