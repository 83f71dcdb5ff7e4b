"""Health, description and rotation."""

from __future__ import annotations

import base64
import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest

from kms_core import AccessDenied, Context, InvalidRequest, KeyDisabled, Throttled, Unavailable

if TYPE_CHECKING:
    from tests.conftest import Aws, Providers

CONTEXT = Context({"tenant": "42"})
DESCRIBED = ["DescribeKey", "ListKeyRotations", "GetKeyRotationStatus"]


def metadata(**fields: Any) -> Any:
    """Change fields of KeyMetadata."""

    def alter(answer: dict[str, Any]) -> dict[str, Any]:
        inner = answer.get("KeyMetadata")
        return {"KeyMetadata": {**inner, **fields}} if inner else answer

    return alter


@pytest.mark.parametrize(
    ("state", "described", "ok"),
    [
        ("Enabled", "enabled", True),
        ("Updating", "enabled", True),
        ("Disabled", "disabled", False),
        ("PendingDeletion", "disabled", False),
        ("PendingReplicaDeletion", "disabled", False),
        ("PendingImport", "pending", False),
        ("Creating", "pending", False),
        ("Unavailable", "unknown", False),
        ("Surprising", "unknown", False),
    ],
)
def test_key_state_is_told(
    aws: Aws, make: Providers, state: str, described: str, *, ok: bool
) -> None:
    """Health and description agree on the key's state; health takes one request."""
    arn = aws.add_key()
    aws.alter = metadata(KeyState=state)
    provider = make(aws, arn)
    health = provider.health(str(arn))
    assert aws.operations == ["DescribeKey"]
    assert (health.ok, provider.describe_key(str(arn)).state) == (ok, described)
    assert health.reason == f"key {arn} is {state}"


@pytest.mark.parametrize(
    ("spec", "usage"),
    [
        ("RSA_2048", "ENCRYPT_DECRYPT"),
        ("RSA_2048", "SIGN_VERIFY"),
        ("ECC_NIST_P256", "SIGN_VERIFY"),
        ("ML_DSA_65", "SIGN_VERIFY"),
        ("HMAC_256", "GENERATE_VERIFY_MAC"),
    ],
)
def test_every_kind_of_key_may_be_well(aws: Aws, make: Providers, spec: str, usage: str) -> None:
    """A key that is not symmetric is not unwell for that; what it is, is told."""
    arn = aws.add_key(spec=spec, usage=usage)
    provider = make(aws, arn)
    health = provider.health(str(arn))
    assert (health.ok, health.reason) == (True, f"key {arn} ({spec} for {usage}) is Enabled")
    aws.set_state(arn, "Disabled")
    assert not provider.health(str(arn)).ok
    assert aws.operations == ["DescribeKey", "DescribeKey"]


@pytest.mark.parametrize(
    ("spec", "usage"), [("SM2", "SIGN_VERIFY"), ("ML_KEM_768", "ENCAPSULATE_DECAPSULATE")]
)
def test_key_of_no_use_is_not_well(aws: Aws, make: Providers, spec: str, usage: str) -> None:
    """A key that this plugin can do nothing with is reported before somebody tries."""
    arn = aws.add_key()
    aws.alter = metadata(KeySpec=spec, KeyUsage=usage)
    health = make(aws, arn).health(str(arn))
    assert not health.ok
    assert f"{spec} for {usage}" in health.reason


@pytest.mark.parametrize(
    ("origin", "protection"),
    [("AWS_KMS", "hsm"), ("AWS_CLOUDHSM", "hsm"), ("EXTERNAL_KEY_STORE", "software")],
)
def test_description_tells_where_the_key_lives(
    aws: Aws, make: Providers, origin: str, protection: str
) -> None:
    """Protection and region come from the service."""
    arn = aws.add_key()
    aws.alter = metadata(Origin=origin)
    info = make(aws, arn).describe_key(str(arn))
    assert (info.key_uri, info.region, info.protection) == (arn.uri, "us-east-1", protection)


def test_names_of_older_services_are_understood(aws: Aws, make: Providers) -> None:
    """Emulators tell the spec under its former name, and not that a symmetric key encrypts."""
    arn = aws.add_key()

    def older(answer: dict[str, Any]) -> dict[str, Any]:
        inner = dict(answer["KeyMetadata"])
        del inner["KeyUsage"]
        return {"KeyMetadata": {**inner, "CustomerMasterKeySpec": inner.pop("KeySpec")}}

    aws.alter = older
    assert make(aws, arn).health(str(arn)).ok


def test_unreachable_service_is_not_just_unwell(aws: Aws, make: Providers) -> None:
    """Health raises what keeps it from asking."""
    arn = aws.add_key()
    aws.fail_with("KMSInternalException", 500)
    with pytest.raises(Unavailable):
        make(aws, arn).health(str(arn))


# Versions


def test_versions_are_told_oldest_first(aws: Aws, make: Providers) -> None:
    """After two rotations there are three materials, and the newest wraps."""
    arn = aws.add_key()
    provider = make(aws, arn)
    first = provider.describe_key(str(arn)).primary_version
    primaries = [first, *(provider.rotate_key(str(arn)).primary_version for _ in range(2))]
    info = provider.describe_key(str(arn))
    assert info.versions == tuple(primaries)
    assert len(set(primaries)) == 3
    assert info.primary_version == primaries[-1]
    assert info.rotation is False


def test_versions_are_ordered_by_date_and_those_to_come_left_out(aws: Aws, make: Providers) -> None:
    """Whatever order the service lists them in; the current one is last even if not listed."""
    arn = aws.add_key()
    day = dt.datetime(2025, 1, 1, tzinfo=dt.UTC).timestamp()
    rotations = [
        {"KeyMaterialId": "third", "RotationDate": day + 2, "KeyMaterialState": "NON_CURRENT"},
        {"KeyMaterialId": "next", "KeyMaterialState": "PENDING_ROTATION"},
        {"KeyMaterialId": "second", "RotationDate": day + 1, "KeyMaterialState": "NON_CURRENT"},
        {"RotationDate": day},
        {"KeyMaterialId": "first", "KeyMaterialState": "NON_CURRENT"},
    ]

    def alter(answer: dict[str, Any]) -> dict[str, Any]:
        if "Rotations" in answer:
            return {"Rotations": rotations, "Truncated": False}
        return {**answer, "KeyRotationEnabled": True}

    aws.alter = alter
    info = make(aws, arn).describe_key(str(arn))
    assert info.primary_version is not None
    assert info.versions == ("first", "second", "third", info.primary_version)
    assert info.rotation is True


def test_pages_of_versions_are_put_together(aws: Aws, make: Providers) -> None:
    """The list goes on where the service says so, and not for ever."""
    arn = aws.add_key()
    markers: list[str] = []

    def alter(answer: dict[str, Any]) -> dict[str, Any]:
        if "Rotations" not in answer:
            return answer
        if not markers:  # of the one entry that there is: the service takes no other
            material = answer["Rotations"][-1]["KeyMaterialId"]
            markers.append(base64.b64encode(material.encode()).decode())
        number = aws.operations.count("ListKeyRotations")
        entry = {"KeyMaterialId": f"v{number:02}", "RotationDate": number}
        return {"Rotations": [entry], "Truncated": True, "NextMarker": markers[0]}

    aws.alter = alter
    versions = make(aws, arn).describe_key(str(arn)).versions
    assert versions[:-1] == tuple(f"v{number:02}" for number in range(1, 21))
    sent = [r.body.get("Marker") for r in aws.requests if r.operation == "ListKeyRotations"]
    assert sent == [None, *markers * 19]


def test_list_that_cannot_go_on_is_an_outage(aws: Aws, make: Providers) -> None:
    """A page that is not the last one says where the next one begins."""
    arn = aws.add_key()
    aws.alter = lambda answer: {**answer, "Truncated": True} if "Rotations" in answer else answer
    with pytest.raises(Unavailable, match="NextMarker"):
        make(aws, arn).describe_key(str(arn))


@pytest.mark.parametrize("code", ["AccessDeniedException", "KMSInvalidStateException"])
@pytest.mark.parametrize("operation", ["ListKeyRotations", "GetKeyRotationStatus"])
def test_what_may_not_be_asked_is_left_out(
    aws: Aws, make: Providers, operation: str, code: str
) -> None:
    """A description without these permissions is still one."""
    arn = aws.add_key()
    aws.fail_with(code, operation=operation)
    info = make(aws, arn).describe_key(str(arn))
    assert (info.versions == ()) == (operation == "ListKeyRotations")
    assert (info.rotation is None) == (operation == "GetKeyRotationStatus")
    assert info.state == "enabled"
    assert aws.operations == DESCRIBED


@pytest.mark.parametrize("operation", ["ListKeyRotations", "GetKeyRotationStatus"])
def test_outage_is_not_taken_for_missing_permission(
    aws: Aws, make: Providers, operation: str
) -> None:
    """Half a description because of a fault would look like a whole one."""
    arn = aws.add_key()
    aws.fail_with("KMSInternalException", 500, operation=operation)
    with pytest.raises(Unavailable):
        make(aws, arn).describe_key(str(arn))


@pytest.mark.parametrize(
    ("spec", "usage"), [("RSA_2048", "ENCRYPT_DECRYPT"), ("HMAC_256", "GENERATE_VERIFY_MAC")]
)
def test_keys_without_versions_are_not_asked_for_them(
    aws: Aws, make: Providers, spec: str, usage: str
) -> None:
    """Only symmetric keys rotate."""
    arn = aws.add_key(spec=spec, usage=usage)
    info = make(aws, arn).describe_key(str(arn))
    assert (info.versions, info.rotation, info.state) == ((), None, "enabled")
    assert aws.operations == ["DescribeKey"]


# Rotation


def test_rotated_key_opens_what_it_wrapped_before(aws: Aws, make: Providers) -> None:
    """A new version wraps; what the old one wrapped opens."""
    arn = aws.add_key()
    provider = make(aws, arn)
    old = provider.generate_data_key(str(arn), CONTEXT)
    info = provider.rotate_key(str(arn))
    new = provider.generate_data_key(str(arn), CONTEXT)
    assert info.primary_version == new.ciphertext.key_version != old.ciphertext.key_version
    for data_key in (old, new):
        assert provider.decrypt(str(arn), data_key.ciphertext, CONTEXT) == data_key.plaintext


def test_alias_is_rotated_by_its_arn(aws: Aws, make: Providers) -> None:
    """The service rotates no alias, so the key is found out first."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws, "alias/app", region="us-east-1")
    assert provider.rotate_key("alias/app").key_uri == arn.uri
    asked = next(r for r in aws.requests if r.operation == "RotateKeyOnDemand")
    assert asked.body["KeyId"] == str(arn)
    assert aws.operations == ["DescribeKey", "RotateKeyOnDemand", *DESCRIBED]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UnsupportedOperationException", InvalidRequest),
        ("LimitExceededException", InvalidRequest),
        ("ConflictException", InvalidRequest),
        ("DisabledException", KeyDisabled),
        ("AccessDeniedException", AccessDenied),
        ("ThrottlingException", Throttled),
        ("DependencyTimeoutException", Unavailable),
    ],
)
def test_refused_rotation_is_reported(
    aws: Aws, make: Providers, code: str, kind: type[Exception]
) -> None:
    """What the service says against it comes through, after one request."""
    arn = aws.add_key()
    aws.fail_with(code)
    with pytest.raises(kind):
        make(aws, arn).rotate_key(str(arn))
    assert aws.operations == ["RotateKeyOnDemand"]


@pytest.mark.parametrize("code", ["AccessDeniedException", "KMSInternalException"])
def test_rotation_that_cannot_be_looked_at_is_not_repeated(
    aws: Aws, make: Providers, code: str
) -> None:
    """The service agreed: an error now would have it rotate again."""
    arn = aws.add_key()
    aws.fail_with(code, operation="DescribeKey")
    info = make(aws, arn).rotate_key(str(arn))
    assert (info.key_uri, info.state, info.primary_version) == (arn.uri, "enabled", None)
    assert aws.operations == ["RotateKeyOnDemand", "DescribeKey"]


def test_asymmetric_key_is_not_rotated(aws: Aws, make: Providers) -> None:
    """The service has no such operation for it."""
    arn = aws.add_key(spec="RSA_2048")
    with pytest.raises(InvalidRequest):
        make(aws, arn).rotate_key(str(arn))
