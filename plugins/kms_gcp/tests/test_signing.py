"""Signatures, MACs and public keys: what is sent, what is checked, and by whom."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import google_crc32c
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.cloud.kms_v1 import types

from kms_core import (
    SIGNATURE_ALGORITHMS,
    InvalidRequest,
    KeyDisabled,
    Signature,
    Unavailable,
    UnsupportedOperation,
    verify_signature,
)
from kms_core.testing.servers import Failure, GcpServer
from kms_gcp import publickeys
from kms_gcp.algorithms import ML_DSA_BYTES, SIGNING, named

if TYPE_CHECKING:
    from tests.conftest import Asked, Providers, Scripted

KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"
VERSION = f"{KEY}/cryptoKeyVersions/1"
MESSAGE = b"message"
SIGN = "ASYMMETRIC_SIGN"
Kind: Any = types.CryptoKeyVersion.CryptoKeyVersionAlgorithm


def test_every_signature_of_the_contract_has_a_key() -> None:
    """But those that Google does not have."""
    missing = SIGNATURE_ALGORITHMS - set(SIGNING)
    assert missing == {"ECDSA-SHA512", "RSA-PSS-SHA384", "RSA-PKCS1-SHA384"}


def test_names_of_the_table_are_googles() -> None:
    """One that is misspelt would never be seen."""
    from kms_gcp.algorithms import _KNOWN

    assert set(_KNOWN) <= {kind.name for kind in Kind}


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        ("EC_SIGN_SECP256K1_SHA256", "ECDSA-SHA256"),
        ("RSA_SIGN_PSS_4096_SHA512", "RSA-PSS-SHA512"),
        ("RSA_SIGN_PKCS1_4096_SHA512", "RSA-PKCS1-SHA512"),
    ],
)
def test_less_usual_keys_sign(gcp: GcpServer, make: Providers, algorithm: str, name: str) -> None:
    """Those that the suite does not go through."""
    provider = make(gcp, gcp.create_key(purpose=SIGN, algorithm=algorithm, protection="HSM"))
    signature = provider.sign(KEY, MESSAGE, name)
    assert verify_signature(provider.public_key(KEY), MESSAGE, signature.data, name)
    assert provider.verify(KEY, MESSAGE, signature, name)


def test_signature_names_its_version(gcp: GcpServer, make: Providers) -> None:
    """And is checked with it after a rotation."""
    provider = make(gcp, gcp.create_key(purpose=SIGN))
    old = provider.sign(KEY, MESSAGE, "ECDSA-SHA256")
    provider.rotate_key(KEY)
    new = provider.sign(KEY, MESSAGE, "ECDSA-SHA256")
    assert (old.key_uri, old.key_version) == (f"gcp-kms://{VERSION}", "1")
    assert new.key_version == "2"
    for signature in (old, new):
        version = str(provider.match(signature.key_uri))
        assert provider.verify(version, MESSAGE, signature, signature.algorithm)
        assert provider.public_key(version).key_uri == signature.key_uri


def test_disabled_version_is_replaced_by_the_next_call(gcp: GcpServer, make: Providers) -> None:
    """The first is refused, and the next one asks which version to use."""
    provider = make(gcp, gcp.create_key(purpose=SIGN))
    provider.sign(KEY, MESSAGE, "ECDSA-SHA256")
    gcp.add_version(KEY)
    gcp.set_state(VERSION, "DISABLED")
    with pytest.raises(KeyDisabled):
        provider.sign(KEY, MESSAGE, "ECDSA-SHA256")
    assert provider.sign(KEY, MESSAGE, "ECDSA-SHA256").key_version == "2"


def test_pinned_version_is_asked_about_once(gcp: GcpServer, make: Providers) -> None:
    """What it does never changes."""
    gcp.create_key(purpose="MAC")
    provider = make(gcp, VERSION)
    for _ in range(2):
        provider.sign(VERSION, MESSAGE, "HMAC-SHA256")
    assert gcp.panel.count("GetCryptoKeyVersion") == 1
    assert gcp.panel.count() == 3


@pytest.mark.parametrize(
    ("purpose", "asked"),
    [(SIGN, "ECDSA-SHA384"), (SIGN, "HMAC-SHA256"), ("MAC", "Ed25519"), ("MAC", "HMAC-SHA512")],
)
def test_algorithm_of_another_key_is_refused(
    gcp: GcpServer, make: Providers, purpose: str, asked: str
) -> None:
    """The service would sign with its own, whatever the caller thinks."""
    provider = make(gcp, gcp.create_key(purpose=purpose))
    with pytest.raises(InvalidRequest, match=f"not {asked}"):
        provider.sign(KEY, MESSAGE, asked)
    with pytest.raises(InvalidRequest, match=f"not {asked}"):
        provider.verify(KEY, MESSAGE, Signature(b"s", KEY, asked), asked)


def test_symmetric_key_signs_nothing(gcp: GcpServer, make: Providers) -> None:
    """The message says what it is."""
    with pytest.raises(InvalidRequest, match="has nothing to sign with"):
        make(gcp, gcp.create_key()).sign(KEY, MESSAGE, "ECDSA-SHA256")


def test_digest_is_sent_and_not_the_message(scripted: Scripted, make: Providers) -> None:
    """With its checksum."""
    scripted.answer = _version_of("EC_SIGN_P256_SHA256")
    with pytest.raises(Unavailable):
        make(scripted, VERSION).sign(VERSION, MESSAGE, "ECDSA-SHA256")
    request = scripted.requests[-1].parsed()
    digest = hashlib.sha256(MESSAGE).digest()
    assert request.digest.sha256 == digest
    assert request.digest_crc32c.value == google_crc32c.value(digest)
    assert request.data == b""


@pytest.mark.parametrize("size", [0, 65537])
def test_message_that_is_sent_whole_has_bounds(gcp: GcpServer, make: Providers, size: int) -> None:
    """Out of them nothing is signed, and no signature is right."""
    provider = make(gcp, gcp.create_key(purpose=SIGN, algorithm="EC_SIGN_ED25519"))
    with pytest.raises(InvalidRequest, match=f"not {size}"):
        provider.sign(KEY, bytes(size), "Ed25519")
    assert not provider.verify(KEY, bytes(size), Signature(b"s", KEY, "Ed25519"), "Ed25519")


@pytest.mark.parametrize("failure", [Failure.WRONG_KEY, Failure.CORRUPT_CRC, Failure.MALFORMED])
@pytest.mark.parametrize("purpose", [SIGN, "MAC"])
def test_signature_that_is_not_beyond_doubt_is_none(
    gcp: GcpServer, make: Providers, failure: Failure, purpose: str
) -> None:
    """Somebody would find out too late."""
    provider = make(gcp, gcp.create_key(purpose=purpose))
    name = "HMAC-SHA256" if purpose == "MAC" else "ECDSA-SHA256"
    provider.sign(KEY, MESSAGE, name)
    gcp.panel.fail(failure)
    with pytest.raises(Unavailable):
        provider.sign(KEY, MESSAGE, name)


@pytest.mark.parametrize("signature", ["text", None])
def test_signature_that_is_not_bytes_is_refused(
    gcp: GcpServer, make: Providers, signature: Any
) -> None:
    """Some SDKs take text for base64."""
    provider = make(gcp, gcp.create_key(purpose=SIGN))
    with pytest.raises(InvalidRequest, match="a signature is bytes"):
        provider.verify(KEY, MESSAGE, Signature(signature, KEY, "ECDSA-SHA256"), "ECDSA-SHA256")


# MACs


def _version_of(algorithm: str) -> Callable[[Asked], bytes]:
    """Tells what the version does, and nothing else."""

    def answer(asked: Asked) -> bytes:
        if asked.rpc != "GetCryptoKeyVersion":
            return b""
        version = types.CryptoKeyVersion(name=VERSION, algorithm=Kind[algorithm], state=1)
        return bytes(types.CryptoKeyVersion.serialize(version))

    return answer


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ""),
        ({"success": False, "verified_success_integrity": False}, ""),
        ({"verified_success_integrity": False}, "verified_success_integrity"),
        ({"success": False}, "verified_success_integrity"),
        ({"verified_data_crc32c": False}, "verified_data_crc32c"),
        ({"verified_mac_crc32c": False}, "verified_mac_crc32c"),
        ({"name": KEY}, "answered for"),
    ],
)
def test_answer_about_a_mac_is_checked(
    scripted: Scripted, make: Providers, fields: dict[str, Any], named: str
) -> None:
    """One bit on the line must not turn a refusal into its opposite."""
    good = {
        "name": VERSION,
        "success": True,
        "verified_data_crc32c": True,
        "verified_mac_crc32c": True,
        "verified_success_integrity": True,
    }
    told = _version_of("HMAC_SHA256")

    def answer(asked: Asked) -> bytes:
        verdict = types.MacVerifyResponse(**{**good, **fields})
        return told(asked) or bytes(types.MacVerifyResponse.serialize(verdict))

    scripted.answer = answer
    provider = make(scripted, VERSION)
    mac = Signature(bytes(32), f"gcp-kms://{VERSION}", "HMAC-SHA256")
    if not named:
        verdict = provider.verify(VERSION, MESSAGE, mac, "HMAC-SHA256")
        assert verdict is fields.get("success", True)
        return
    with pytest.raises(Unavailable, match=named):
        provider.verify(VERSION, MESSAGE, mac, "HMAC-SHA256")


def test_mac_of_another_length_is_false_without_asking(gcp: GcpServer, make: Providers) -> None:
    """The service would call it a bad request."""
    provider = make(gcp, gcp.create_key(purpose="MAC"))
    mac = Signature(bytes(31), f"gcp-kms://{VERSION}", "HMAC-SHA256")
    assert not provider.verify(KEY, MESSAGE, mac, "HMAC-SHA256")
    assert gcp.panel.count("MacVerify") == 0


# Public keys


@pytest.mark.parametrize("purpose", ["ENCRYPT_DECRYPT", "MAC"])
def test_key_without_public_key_says_so(gcp: GcpServer, make: Providers, purpose: str) -> None:
    """The service is not asked for one."""
    with pytest.raises(InvalidRequest, match="no public key"):
        make(gcp, gcp.create_key(purpose=purpose)).public_key(KEY)
    assert gcp.panel.count("GetPublicKey") == 0


def test_rsa_key_says_how_to_wrap_to_it(gcp: GcpServer, make: Providers) -> None:
    """So that the core can do it while the service is down."""
    key = make(gcp, gcp.create_key(purpose="ASYMMETRIC_DECRYPT")).public_key(KEY)
    assert key.algorithms == ("RSA-OAEP-SHA256",)
    assert (key.wrap_alg, key.key_version) == (0x0302, "1")


@pytest.mark.parametrize("name", ML_DSA_BYTES)
def test_raw_ml_dsa_key_becomes_der(name: str) -> None:
    """As cryptography writes it."""
    from cryptography.hazmat.primitives.asymmetric import mldsa

    kind = getattr(mldsa, f"MLDSA{name.rpartition('-')[2]}PrivateKey")
    public = kind.generate().public_key()
    expected = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert publickeys._ml_dsa_der(public.public_bytes_raw(), name) == expected


def _public_key(kind: str, data: bytes, **fields: Any) -> Callable[[Asked], bytes]:
    told = _version_of(kind)
    checksummed = types.ChecksummedData(data=data, crc32c_checksum=google_crc32c.value(data))
    good = {"name": VERSION, "algorithm": Kind[kind], "public_key": checksummed}

    def answer(asked: Asked) -> bytes:
        key = types.PublicKey(**{**good, **fields})
        return told(asked) or bytes(types.PublicKey.serialize(key))

    return answer


def _der(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data


P256 = _der(ec.generate_private_key(ec.SECP256R1()))
RSA_2048 = _der(rsa.generate_private_key(65537, 2048))


@pytest.mark.parametrize(
    ("key", "fields", "named"),
    [
        (("EC_SIGN_P256_SHA256", b""), {}, "data"),
        (("EC_SIGN_P256_SHA256", P256[:-1]), {}, "public_key"),
        (("EC_SIGN_P256_SHA256", bytes(9000)), {}, "data"),
        (("EC_SIGN_P256_SHA256", P256), {"public_key": None}, "public_key"),
        (("EC_SIGN_P256_SHA256", P256), {"algorithm": Kind["EC_SIGN_ED25519"]}, "algorithm"),
        (("EC_SIGN_P256_SHA256", P256), {"name": KEY}, "answered for"),
        (
            ("EC_SIGN_P256_SHA256", P256),
            {"public_key": types.ChecksummedData(data=P256, crc32c_checksum=0)},
            "checksum of data",
        ),
        (("RSA_DECRYPT_OAEP_3072_SHA256", RSA_2048), {}, "public_key"),
        (("PQ_SIGN_ML_DSA_65", bytes(1951)), {}, "data"),
    ],
)
def test_public_key_that_is_not_beyond_doubt_is_none(
    scripted: Scripted,
    make: Providers,
    key: tuple[str, bytes],
    fields: dict[str, Any],
    named: str,
) -> None:
    """Whoever wraps to the wrong key loses what was wrapped."""
    scripted.answer = _public_key(*key, **fields)
    with pytest.raises(Unavailable, match=named):
        make(scripted, VERSION).public_key(VERSION)


def test_kind_of_key_that_this_host_does_not_know_is_passed_on(
    scripted: Scripted, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of use elsewhere; here it verifies nothing."""

    def refuse(_der: bytes) -> Any:
        raise UnsupportedAlgorithm("not here")

    monkeypatch.setattr(publickeys, "load_der_public_key", refuse)
    scripted.answer = _public_key("EC_SIGN_P256_SHA256", P256)
    provider = make(scripted, VERSION)
    assert provider.public_key(VERSION).der == P256
    with pytest.raises(UnsupportedOperation, match="does not verify ECDSA-SHA256"):
        provider.verify(VERSION, MESSAGE, Signature(b"s", VERSION, "ECDSA-SHA256"), "ECDSA-SHA256")


def test_algorithm_of_the_future_is_of_no_use(scripted: Scripted, make: Providers) -> None:
    """Its number is shown, since this SDK has no name for it."""
    version = types.CryptoKeyVersion.pb()(name=VERSION, algorithm=999, state=1)
    scripted.answer = lambda _asked: version.SerializeToString()
    provider = make(scripted, VERSION)
    health = provider.health(VERSION)
    assert not health.ok
    assert "algorithm 999" in health.reason
    assert not named("algorithm 999").is_usable
