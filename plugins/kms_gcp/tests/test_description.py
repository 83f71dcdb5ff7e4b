"""Health, description and rotation of keys of every purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.cloud.kms_v1 import types

from kms_core import AccessDenied, InvalidRequest, KeyNotFound, ServiceError, Unavailable
from kms_core.testing.servers import Failure, GcpServer

if TYPE_CHECKING:
    from tests.conftest import Asked, Providers, Scripted

KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"
VERSION = f"{KEY}/cryptoKeyVersions/1"
ASYMMETRIC = ["ASYMMETRIC_DECRYPT", "ASYMMETRIC_SIGN", "MAC"]
State: Any = types.CryptoKeyVersion.CryptoKeyVersionState
Level: Any = types.ProtectionLevel
Purpose: Any = types.CryptoKey.CryptoKeyPurpose


# Health


@pytest.mark.parametrize("purpose", ["ENCRYPT_DECRYPT", *ASYMMETRIC])
@pytest.mark.parametrize("key_id", [KEY, VERSION])
def test_health_follows_the_state(
    gcp: GcpServer, make: Providers, purpose: str, key_id: str
) -> None:
    """Of the version that would be used."""
    gcp.create_key(purpose=purpose)
    provider = make(gcp, key_id)
    assert provider.health(key_id).ok
    gcp.set_state(VERSION, "DISABLED")
    health = provider.health(key_id)
    assert not health.ok
    assert KEY in health.reason


@pytest.mark.parametrize("purpose", ["ENCRYPT_DECRYPT", *ASYMMETRIC])
def test_health_is_one_request(gcp: GcpServer, make: Providers, purpose: str) -> None:
    """But for the first, if what the key is has to be found out."""
    gcp.create_key(purpose=purpose)
    provider = make(gcp)
    provider.health(KEY)
    before = gcp.panel.count()
    provider.health(KEY)
    assert gcp.panel.count() == before + 1


def test_key_of_no_use_is_not_well(gcp: GcpServer, make: Providers) -> None:
    """However enabled it is."""
    gcp.create_key(purpose="RAW_ENCRYPT_DECRYPT")
    health = make(gcp).health(KEY)
    assert not health.ok
    assert "AES_256_GCM" in health.reason


def test_missing_key_is_told_by_its_error(gcp: GcpServer, make: Providers) -> None:
    """As any other call would tell it."""
    with pytest.raises(KeyNotFound):
        make(gcp).health(KEY)


def crypto_key(**fields: Any) -> bytes:
    """An answer about the key, as it should be but for ``fields``."""
    good = {"name": KEY, "purpose": Purpose["ENCRYPT_DECRYPT"]}
    return bytes(types.CryptoKey.serialize(types.CryptoKey(**{**good, **fields})))


def test_key_without_primary_version_is_not_well(scripted: Scripted, make: Providers) -> None:
    """There is nothing to encrypt with."""
    scripted.answer = lambda asked: crypto_key() if asked.rpc == "GetCryptoKey" else b""
    health = make(scripted).health(KEY)
    assert not health.ok
    assert "no primary version" in health.reason
    info = make(scripted).describe_key(KEY)
    assert (info.state, info.primary_version, info.versions) == ("disabled", None, ())


@pytest.mark.parametrize("name", [VERSION, KEY.replace("app", "other"), ""])
def test_answer_about_something_else_is_an_outage(
    scripted: Scripted, make: Providers, name: str
) -> None:
    """A version's name is not the key's."""
    scripted.answer = lambda _asked: crypto_key(name=name)
    with pytest.raises(Unavailable):
        make(scripted).health(KEY)


# Description


def test_symmetric_key_is_described(gcp: GcpServer, make: Providers) -> None:
    """With all versions that still exist, oldest first."""
    gcp.create_key(protection="HSM")
    for _ in range(3):
        gcp.add_version(KEY)
    gcp.set_state(VERSION, "DESTROYED")
    gcp.set_state(f"{KEY}/cryptoKeyVersions/2", "DISABLED")
    info = make(gcp).describe_key(KEY)
    assert info.key_uri == f"gcp-kms://{KEY}"
    assert (info.state, info.protection, info.region) == ("enabled", "hsm", "europe-west1")
    assert (info.primary_version, info.versions) == ("4", ("2", "3", "4"))
    assert info.rotation is False


def test_primary_version_that_is_gone_is_still_told(gcp: GcpServer, make: Providers) -> None:
    """It is what encrypting would use, so it must not be missing."""
    gcp.create_key()
    gcp.add_version(KEY)
    gcp.set_state(f"{KEY}/cryptoKeyVersions/2", "DESTROYED")
    info = make(gcp).describe_key(KEY)
    assert (info.state, info.primary_version, info.versions) == ("destroyed", "2", ("1", "2"))


def test_versions_are_left_out_where_they_may_not_be_listed(
    gcp: GcpServer, make: Providers
) -> None:
    """The rest of a symmetric key is told all the same."""
    gcp.create_key()
    gcp.panel.fail(Failure.ACCESS_DENIED, operation="ListCryptoKeyVersions")
    info = make(gcp).describe_key(KEY)
    assert (info.state, info.primary_version, info.versions) == ("enabled", "1", ())


def test_asymmetric_key_needs_its_versions(gcp: GcpServer, make: Providers) -> None:
    """Without them there is nothing to tell."""
    gcp.create_key(purpose="MAC")
    gcp.panel.fail(Failure.ACCESS_DENIED, operation="ListCryptoKeyVersions")
    with pytest.raises(AccessDenied):
        make(gcp).describe_key(KEY)


@pytest.mark.parametrize("purpose", ASYMMETRIC)
def test_newest_enabled_version_stands_for_a_primary_one(
    gcp: GcpServer, make: Providers, purpose: str
) -> None:
    """It is the one in use."""
    gcp.create_key(purpose=purpose)
    gcp.add_version(KEY)
    provider = make(gcp)
    info = provider.describe_key(KEY)
    assert (info.state, info.primary_version, info.rotation) == ("enabled", "2", None)
    gcp.set_state(f"{KEY}/cryptoKeyVersions/2", "DISABLED")
    assert provider.describe_key(KEY).primary_version == "1"
    gcp.set_state(VERSION, "DISABLED")
    info = provider.describe_key(KEY)
    assert (info.state, info.primary_version, info.versions) == ("disabled", None, ("1", "2"))


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("ENABLED", "enabled"),
        ("DISABLED", "disabled"),
        ("DESTROY_SCHEDULED", "disabled"),
        ("DESTROYED", "destroyed"),
        ("PENDING_GENERATION", "pending"),
        ("PENDING_IMPORT", "pending"),
        ("PENDING_EXTERNAL_DESTRUCTION", "destroyed"),
        ("IMPORT_FAILED", "unknown"),
    ],
)
def test_pinned_version_is_described(
    gcp: GcpServer, make: Providers, state: str, told: str
) -> None:
    """By its own state."""
    gcp.create_key()
    gcp.set_state(VERSION, state)
    info = make(gcp, VERSION).describe_key(VERSION)
    assert info.key_uri == f"gcp-kms://{VERSION}"
    assert (info.state, info.primary_version, info.versions) == (told, "1", ("1",))


@pytest.mark.parametrize(
    ("level", "protection"),
    [
        ("SOFTWARE", "software"),
        ("HSM", "hsm"),
        ("HSM_SINGLE_TENANT", "hsm"),
        ("EXTERNAL", "software"),
        ("EXTERNAL_VPC", "software"),
    ],
)
def test_protection_is_what_google_vouches_for(
    scripted: Scripted, make: Providers, level: str, protection: str
) -> None:
    """Where others keep their keys it cannot know.  Automatic rotation is told, too."""

    def answer(asked: Asked) -> bytes:
        if asked.rpc != "GetCryptoKey":
            return b""
        version = types.CryptoKeyVersion(name=VERSION, algorithm=1, state=State["ENABLED"])
        template = types.CryptoKeyVersionTemplate(protection_level=Level[level])
        return crypto_key(
            primary=version, version_template=template, rotation_period={"seconds": 86400}
        )

    scripted.answer = answer
    info = make(scripted).describe_key(KEY)
    assert (info.protection, info.rotation, info.primary_version) == (protection, True, "1")


# Rotation


def test_rotation_makes_the_new_version_primary(gcp: GcpServer, make: Providers) -> None:
    """Of a symmetric key."""
    gcp.create_key()
    info = make(gcp).rotate_key(KEY)
    assert (info.primary_version, info.versions) == ("2", ("1", "2"))


@pytest.mark.parametrize("purpose", ASYMMETRIC)
def test_rotation_of_other_keys_makes_a_version(
    gcp: GcpServer, make: Providers, purpose: str
) -> None:
    """They have no primary one."""
    gcp.create_key(purpose=purpose)
    assert make(gcp).rotate_key(KEY).primary_version == "2"
    assert gcp.panel.count("UpdateCryptoKeyPrimaryVersion") == 0


def test_one_version_is_not_rotated(gcp: GcpServer, make: Providers) -> None:
    """And nothing is made."""
    gcp.create_key()
    with pytest.raises(InvalidRequest, match="without a version"):
        make(gcp, VERSION).rotate_key(VERSION)
    assert gcp.versions(KEY) == [VERSION]


@pytest.mark.parametrize("failing", ["UpdateCryptoKeyPrimaryVersion", "GetCryptoKey"])
def test_rotation_that_stops_half_way_is_not_tried_again(
    gcp: GcpServer, make: Providers, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """An error that is retried would make a version each time."""
    gcp.create_key()
    provider = make(gcp)
    read = provider._keys.read

    def fail_from_now_on(answer: Any) -> Any:
        gcp.panel.fail(Failure.SERVER_ERROR, operation=failing)
        return read(answer)

    monkeypatch.setattr(provider._keys, "read", fail_from_now_on)
    with pytest.raises(ServiceError, match=r"cryptoKeyVersions/2 was made") as caught:
        provider.rotate_key(KEY)
    assert type(caught.value) is ServiceError
    assert not caught.value.retryable
    assert isinstance(caught.value.__cause__, Unavailable)


def test_version_that_is_not_ready_does_not_become_primary(
    scripted: Scripted, make: Providers
) -> None:
    """Encrypting would fail until it is."""
    version = types.CryptoKeyVersion(
        name=f"{KEY}/cryptoKeyVersions/2", algorithm=1, state=State["PENDING_GENERATION"]
    )

    def answer(asked: Asked) -> bytes:
        if asked.rpc == "GetCryptoKey":
            return crypto_key()
        return bytes(types.CryptoKeyVersion.serialize(version))

    scripted.answer = answer
    with pytest.raises(ServiceError, match="PENDING_GENERATION"):
        make(scripted).rotate_key(KEY)
    assert [asked.rpc for asked in scripted.requests] == ["GetCryptoKey", "CreateCryptoKeyVersion"]
