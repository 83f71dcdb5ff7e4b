"""Which settings are accepted, and what the refusals say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kms_aws.settings import AwsKmsSettings, is_loopback
from kms_core import Duration, Secret

UUID = "1234abcd-12ab-34cd-56ef-1234567890ab"
MRK = "mrk-1234abcd12ab34cd56ef1234567890ab"
ARN = f"arn:aws:kms:us-east-1:111122223333:key/{UUID}"
MRK_ARN = f"arn:aws:kms:us-east-1:111122223333:key/{MRK}"
ROLE = "arn:aws:iam::111122223333:role/team/app"
SECRETS = {"access_key_id": Secret("a"), "secret_access_key": Secret("b")}


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("key", {"key": ""}),
        ("key", {"key": "app-kek", "region": "us-east-1"}),
        ("key", {"key": "alias/", "region": "us-east-1"}),
        ("key", {"key": f"{ARN}/x"}),
        ("region", {"key": "alias/app"}),
        ("region", {"key": UUID}),
        ("region", {"region": "eu-west-1"}),
        ("region", {"region": ""}),
        ("region", {"key": "alias/app", "region": "us-east-1.evil.example"}),
        ("replica_regions", {"replica_regions": ("eu-west-1",)}),
        ("replica_regions", {"key": MRK_ARN, "replica_regions": ("eu west",)}),
        ("also_open", {"also_open": ("alias/old",)}),
        ("also_open", {"also_open": (ARN.replace("us-east-1", "eu-west-1"),)}),
        ("also_open", {"also_open": (MRK_ARN.replace("us-east-1", "eu-west-1"),)}),
        ("endpoint_url", {"endpoint_url": ""}),
        ("endpoint_url", {"endpoint_url": "kms.example"}),
        ("endpoint_url", {"endpoint_url": "ftp://kms.example"}),
        ("endpoint_url", {"endpoint_url": "https://"}),
        ("endpoint_url", {"endpoint_url": "https://kms.example:99999"}),
        ("endpoint_url", {"endpoint_url": "https://[::1"}),
        ("endpoint_url", {"endpoint_url": "https://kms.example/path"}),
        ("endpoint_url", {"endpoint_url": "https://kms.example?x=y"}),
        ("endpoint_url", {"endpoint_url": "https://kms.example\n"}),
        ("endpoint_url", {"endpoint_url": "http://127.0.0.1:5000"}),
        ("endpoint_url", {"endpoint_url": "http://kms.example"}),
        ("endpoint_url", {"endpoint_url": "http://kms.example", "insecure": True}),
        ("endpoint_url", {"endpoint_url": "http://127.0.0.1.example", "insecure": True}),
        ("endpoint_url", {"endpoint_url": "http://10.0.0.1", "insecure": True}),
        ("ca_file", {"ca_file": Path("/nowhere/ca.pem")}),
        ("access_key_id", {"access_key_id": Secret("a")}),
        ("access_key_id", {"secret_access_key": Secret("b")}),
        ("session_token", {"session_token": Secret("c")}),
        ("profile", {"profile": "dev", **SECRETS}),
        ("fips", {"fips": True, "endpoint_url": "https://kms.example"}),
        ("dualstack", {"dualstack": True, "endpoint_url": "https://kms.example"}),
        ("fips", {"fips": True, "role_arn": ROLE, "sts_endpoint_url": "https://sts.example"}),
        ("role_arn", {"role_arn": "app"}),
        ("role_arn", {"role_arn": ROLE.replace(":role/", ":user/")}),
        ("role_arn", {"role_arn": f"{ROLE} x"}),
        ("role_session_name", {"role_session_name": "app"}),
        ("role_session_name", {"role_arn": ROLE, "role_session_name": "a"}),
        ("role_session_name", {"role_arn": ROLE, "role_session_name": "a b"}),
        ("external_id", {"external_id": "tenant-42"}),
        ("external_id", {"role_arn": ROLE, "external_id": "ä"}),
        ("sts_endpoint_url", {"sts_endpoint_url": "https://sts.example"}),
        ("sts_endpoint_url", {"role_arn": ROLE, "sts_endpoint_url": "sts.example"}),
        ("sts_endpoint_url", {"role_arn": ROLE, "sts_endpoint_url": "http://sts.example"}),
        ("sts_endpoint_url", {"role_arn": ROLE, "sts_endpoint_url": "http://127.0.0.1:5000"}),
        (
            "sts_endpoint_url",
            {"role_arn": ROLE, "endpoint_url": "http://127.0.0.1:5000", "insecure": True},
        ),
        ("connect_timeout", {"connect_timeout": Duration(0.0)}),
        ("attempt_timeout", {"attempt_timeout": Duration(-1.0)}),
        ("attempt_timeout", {"attempt_timeout": Duration(float("nan"))}),
        ("attempt_timeout", {"attempt_timeout": Duration(601.0)}),
        ("max_connections", {"max_connections": 0}),
        ("max_connections", {"max_connections": 1001}),
    ],
)
def test_impossible_settings_name_their_field(field: str, wrong: dict[str, Any]) -> None:
    """A refusal is one line that says which setting to change."""
    with pytest.raises(ValueError, match=field) as caught:
        AwsKmsSettings(**{"key": ARN, **wrong})
    message = caught.value.args[0]
    assert message.startswith((field, f"'{field}'"))
    assert "\n" not in message


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"region": "us-east-1"},
        {"key": "alias/app", "region": "us-east-1", "replica_regions": ("eu-west-1",)},
        {"key": MRK_ARN, "replica_regions": ("us-east-1", "eu-west-1")},
        {"replica_regions": ("eu-west-1",), "also_open": (MRK_ARN,)},
        {"also_open": (ARN.replace("1234", "4321"),)},
        {"endpoint_url": "https://vpce-1.kms.us-east-1.vpce.amazonaws.com"},
        {"endpoint_url": "https://127.0.0.1:8443/", "insecure": True},
        {"endpoint_url": "http://127.8.8.8:5000", "insecure": True},
        {"endpoint_url": "http://[::1]:5000", "insecure": True},
        {"endpoint_url": "http://localhost:5000", "insecure": True},
        {"profile": "dev"},
        {"profile": "dev", "role_arn": ROLE},
        {"fips": True, "dualstack": True, "role_arn": ROLE},
        {"role_arn": ROLE, "role_session_name": "app@host", "external_id": "tenant:42", **SECRETS},
        {"role_arn": ROLE, "endpoint_url": "https://kms.example"},
        {"role_arn": ROLE, "sts_endpoint_url": "http://localhost:1", "insecure": True},
        {**SECRETS, "session_token": Secret("c")},
        {"attempt_timeout": Duration(0.05), "connect_timeout": Duration(600.0)},
    ],
)
def test_sensible_settings_are_accepted(right: dict[str, Any]) -> None:
    """What the README promises to accept is accepted."""
    assert AwsKmsSettings(**{"key": ARN, **right}).configured_key.region == "us-east-1"


def test_password_in_an_endpoint_is_refused_and_not_shown() -> None:
    """A URL is no place for credentials, and neither is the complaint about it."""
    with pytest.raises(ValueError, match="endpoint_url") as caught:
        AwsKmsSettings(key=ARN, endpoint_url="https://user:hunter2@kms.example")
    assert "hunter2" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    """Printing the settings prints no credentials."""
    settings = AwsKmsSettings(
        key=ARN, access_key_id=Secret("AKIDX"), secret_access_key=Secret("hunter2")
    )
    assert "hunter2" not in repr(settings)
    assert "AKIDX" not in repr(settings)


def test_retired_replicas_are_seen_from_here() -> None:
    """A retired multi-Region key is used through its replica in this region."""
    elsewhere = MRK_ARN.replace("us-east-1", "eu-west-1")
    settings = AwsKmsSettings(key=ARN, also_open=(elsewhere,), replica_regions=("eu-west-1",))
    assert [str(arn) for arn in settings.retired_keys] == [MRK_ARN]


def test_loopback_is_this_machine() -> None:
    """Proxies are bypassed for loopback endpoints and no others."""
    assert is_loopback("https://[::1]")
    assert is_loopback("http://127.8.8.8:5000")
    assert not is_loopback("https://kms.example")
    assert not is_loopback("https://[::1")
