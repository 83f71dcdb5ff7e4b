"""The suite of the contract, against the strict server, for every way of configuring a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from kms_core import Duration, InvalidRequest
from kms_core.testing import ProviderConformance
from kms_core.testing.servers import Failure, Panel

if TYPE_CHECKING:
    from kms_core.testing.servers import GcpServer
    from kms_gcp.provider import GcpKmsProvider
    from tests.conftest import Providers

FOREIGN = "gcp-kms://projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/another"
RSA_2048_BYTES = 256 - 66 - 32  # less the padding, and the context's digest
WHOLE = (1, 65536)  # bytes of a message that is not hashed here
TIMEOUT = Duration(1.0)
SIGNING_KEYS = {
    "ECDSA-SHA256": "EC_SIGN_P256_SHA256",
    "ECDSA-SHA384": "EC_SIGN_P384_SHA384",
    "Ed25519": "EC_SIGN_ED25519",
    "RSA-PSS-SHA256": "RSA_SIGN_PSS_2048_SHA256",
    "RSA-PKCS1-SHA256": "RSA_SIGN_PKCS1_2048_SHA256",
    "ML-DSA-44": "PQ_SIGN_ML_DSA_44",
    "ML-DSA-65": "PQ_SIGN_ML_DSA_65",
    "ML-DSA-87": "PQ_SIGN_ML_DSA_87",
    "HMAC-SHA256": "HMAC_SHA256",
    "HMAC-SHA384": "HMAC_SHA384",
    "HMAC-SHA512": "HMAC_SHA512",
}


HOOKS = ("encrypt", "decrypt", "health", "describe_key", "sign", "verify", "public_key")


def not_hit(**hooks: tuple[Failure, ...]) -> dict[str, tuple[Failure, ...]]:
    """Nobody is by RESET: after it the gate is shut for a moment, so the next request is refused.

    ``test_connection`` has what it does to one request.
    """
    return {hook: (Failure.RESET, *hooks.get(hook, ())) for hook in HOOKS}


def create_signing_key(gcp: GcpServer, algorithm: str, key_id: str = "signing") -> str:
    """A key that does ``algorithm``; its name."""
    purpose = "MAC" if algorithm.startswith("HMAC") else "ASYMMETRIC_SIGN"
    return gcp.create_key(key_id, purpose=purpose, algorithm=SIGNING_KEYS[algorithm])


class _Gcp(ProviderConformance):
    foreign_key_uri = FOREIGN
    plugin_module = "kms_gcp"
    sdk_modules = ("google", "grpc", "proto", "google_crc32c", "requests")
    has_data_key = False
    rotates = True
    has_sign = True
    has_verify = True
    has_public_key = True
    says_retry_after = True
    attempt_timeout = TIMEOUT
    #: Signatures are checked here, with a public key that was fetched before.
    not_hit_by: ClassVar[Mapping[str, tuple[Failure, ...]]] = not_hit(verify=tuple(Failure))

    @pytest.fixture
    def provider(self, gcp: GcpServer, make: Providers, key_id: str) -> GcpKmsProvider:
        return make(gcp, key_id, attempt_timeout=TIMEOUT)

    @pytest.fixture
    def other_key(self, gcp: GcpServer, make: Providers) -> tuple[GcpKmsProvider, str]:
        name = gcp.create_key("other")
        return make(gcp, name), name

    @pytest.fixture
    def panel(self, gcp: GcpServer) -> Panel:
        return gcp.panel

    @pytest.fixture
    def signing_key(
        self, gcp: GcpServer, make: Providers, algorithm: str | None
    ) -> tuple[GcpKmsProvider, str] | None:
        if algorithm is None:
            return None
        name = create_signing_key(gcp, algorithm)
        return make(gcp, name, attempt_timeout=TIMEOUT), name

    @pytest.fixture
    def rotate_signing_key(
        self, signing_key: tuple[GcpKmsProvider, str] | None
    ) -> Callable[[], None] | None:
        if signing_key is None:
            return None
        provider, name = signing_key

        def rotate() -> None:
            provider.rotate_key(name)

        return rotate


class TestSymmetricKey(_Gcp):
    """A key that encrypts and decrypts; signing with P-256, P-384, RSA and Ed25519."""

    signs = ("ECDSA-SHA256", "ECDSA-SHA384", "RSA-PSS-SHA256", "RSA-PKCS1-SHA256", "Ed25519")
    signed_bytes: ClassVar[Mapping[str, tuple[int, int]]] = {"Ed25519": WHOLE}

    @pytest.fixture
    def key_id(self, gcp: GcpServer) -> str:
        return gcp.create_key()


class _Unfailing(_Gcp):
    """What differs here makes no difference to failures, and those take their time."""

    @pytest.fixture
    def panel(self) -> None:
        return None


class TestShortName(_Unfailing):
    """The same, named as an environment does it; signing with ML-DSA."""

    signs = ("ML-DSA-65", "ML-DSA-44", "ML-DSA-87")
    signed_bytes: ClassVar[Mapping[str, tuple[int, int]]] = dict.fromkeys(signs, WHOLE)
    altered_bytes = 100

    @pytest.fixture
    def key_id(self, gcp: GcpServer) -> str:
        gcp.create_key()
        return "europe-west1/ring/app"

    @pytest.fixture
    def provider(self, gcp: GcpServer, make: Providers, key_id: str) -> GcpKmsProvider:
        return make(gcp, key_id, project="demo", attempt_timeout=TIMEOUT)


class TestHsmKey(_Gcp):
    """A key with the smaller limits of hardware; MACs."""

    signs = ("HMAC-SHA256", "HMAC-SHA384", "HMAC-SHA512")
    signed_bytes: ClassVar[Mapping[str, tuple[int, int]]] = dict.fromkeys(signs, WHOLE)
    #: The answer to whether a MAC is right has no checksum.
    not_hit_by: ClassVar[Mapping[str, tuple[Failure, ...]]] = not_hit(verify=(Failure.CORRUPT_CRC,))

    @pytest.fixture
    def key_id(self, gcp: GcpServer) -> str:
        return gcp.create_key(protection="HSM")

    @pytest.fixture
    def provider(self, gcp: GcpServer, make: Providers, key_id: str) -> GcpKmsProvider:
        return make(gcp, key_id, hsm=True, attempt_timeout=TIMEOUT)


class _Pinned(_Gcp):
    may_rotate = False

    def test_one_version_is_not_rotated(self, provider: Any, key_id: str) -> None:
        """One version of a key cannot be rotated."""
        with pytest.raises(InvalidRequest, match="without a version"):
            provider.rotate_key(key_id)


class TestPinnedSymmetricVersion(_Pinned, _Unfailing):
    """One version of a symmetric key."""

    @pytest.fixture
    def key_id(self, gcp: GcpServer) -> str:
        key = gcp.create_key()
        gcp.add_version(key)
        return gcp.versions(key)[0]


class TestPinnedSigningVersion(_Pinned):
    """One version of a key that only signs."""

    encrypts = False
    signs = ("ECDSA-SHA256",)

    @pytest.fixture
    def key_id(self, gcp: GcpServer) -> str:
        return gcp.versions(create_signing_key(gcp, "ECDSA-SHA256"))[0]

    @pytest.fixture
    def signing_key(self) -> None:
        return None


class _Rsa(_Gcp):
    max_plaintext = RSA_2048_BYTES
    wraps_offline = True
    #: Wrapping is done here, too.
    not_hit_by: ClassVar[Mapping[str, tuple[Failure, ...]]] = not_hit(encrypt=tuple(Failure))

    @pytest.fixture
    def other_key(self, gcp: GcpServer, make: Providers) -> tuple[GcpKmsProvider, str]:
        name = gcp.create_key("other", purpose="ASYMMETRIC_DECRYPT")
        return make(gcp, name), name


class TestRsaKey(_Rsa):
    """A key that decrypts, in whichever version is the newest."""

    #: Wrapping is done here; and an empty list of versions that may be used is an answer.
    not_hit_by: ClassVar[Mapping[str, tuple[Failure, ...]]] = not_hit(
        encrypt=tuple(Failure), health=(Failure.MALFORMED,)
    )

    @pytest.fixture
    def key_id(self, gcp: GcpServer) -> str:
        return gcp.create_key(purpose="ASYMMETRIC_DECRYPT")


class TestPinnedRsaVersion(_Pinned, _Unfailing, _Rsa):
    """One version of a key that decrypts."""

    @pytest.fixture
    def key_id(self, gcp: GcpServer) -> str:
        return gcp.versions(gcp.create_key(purpose="ASYMMETRIC_DECRYPT"))[0]
