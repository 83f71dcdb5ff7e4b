"""Assumed roles: whose credentials sign, when they are renewed, and what STS can do to a call."""

from __future__ import annotations

import datetime as dt
import logging
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from kms_core import (
    AccessDenied,
    Context,
    DeadlineExceeded,
    Duration,
    KMSError,
    Throttled,
    Unavailable,
)
from kms_core.testing.servers import StrictAwsServer
from kms_core.testing.servers.http import Response

if TYPE_CHECKING:
    from kms_aws.provider import AwsKmsProvider
    from tests.conftest import Aws, Providers

CONTEXT = Context({"tenant": "42"})
ROLE = "arn:aws:iam::111122223333:role/team/app"


@pytest.fixture(autouse=True)
def _sdk_keeps_quiet() -> Iterator[None]:
    """The SDK logs failed renewals with a traceback; they are what is tested here."""
    logger = logging.getLogger("botocore.credentials")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def assuming(make: Providers, aws: Aws, key: object, **settings: Any) -> AwsKmsProvider:
    """An instance that assumes the role."""
    table = {"role_arn": ROLE, "sts_endpoint_url": aws.endpoint_url, **settings}
    return make(aws, key, **table)


def test_role_signs_the_requests(aws: Aws, make: Providers) -> None:
    """It is assumed when first needed, and once."""
    arn = aws.add_key()
    provider = assuming(make, aws, arn)
    provider.prepare()
    assert aws.requests == []
    for _ in range(2):
        sealed = provider.encrypt(str(arn), b"k", CONTEXT)
        assert provider.decrypt(str(arn), sealed, CONTEXT) == b"k"
    assert aws.operations == ["AssumeRole", "Encrypt", "Decrypt", "Encrypt", "Decrypt"]


def test_settings_reach_sts(aws: Aws, make: Providers) -> None:
    """Session name and external id as configured; the region is the key's."""
    arn = aws.add_key()
    provider = assuming(make, aws, arn, role_session_name="app@host", external_id="tenant:42")
    provider.health(str(arn))
    asked = aws.requests[0]
    assert (asked.operation, asked.region) == ("AssumeRole", "us-east-1")
    sent = {name: asked.body.get(name) for name in ("RoleArn", "RoleSessionName", "ExternalId")}
    assert sent == {"RoleArn": ROLE, "RoleSessionName": "app@host", "ExternalId": "tenant:42"}


def test_without_external_id_none_is_sent(aws: Aws, make: Providers) -> None:
    """The session has a name in any case: CloudTrail shows it."""
    arn = aws.add_key()
    assuming(make, aws, arn).health(str(arn))
    assert "ExternalId" not in aws.requests[0].body
    assert aws.requests[0].body["RoleSessionName"] == "kms-aws"


def test_credentials_renew_themselves(aws: Aws, make: Providers) -> None:
    """Shortly before they expire the role is assumed again, by the same client."""
    arn = aws.add_key()
    provider = assuming(make, aws, arn)
    provider.health(str(arn))
    client = provider._service._connection.client()
    credentials = client._request_signer._credentials
    credentials._expiry_time = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
    provider.health(str(arn))
    assert aws.operations == ["AssumeRole", "DescribeKey", "AssumeRole", "DescribeKey"]
    assert provider._service._connection.client() is client


def test_expired_session_is_assumed_anew(aws: Aws, make: Providers) -> None:
    """If the service calls the credentials expired, the next call gets others."""
    arn = aws.add_key()
    provider = assuming(make, aws, arn)
    provider.health(str(arn))
    aws.fail_with("ExpiredTokenException", operation="DescribeKey")
    with pytest.raises(AccessDenied):
        provider.health(str(arn))
    aws.fault = None
    assert provider.health(str(arn)).ok
    session = ["AssumeRole", "DescribeKey"]
    assert aws.operations == [*session, "DescribeKey", *session]


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AccessDenied", 403, AccessDenied),
        ("ExpiredToken", 403, AccessDenied),
        ("InvalidClientTokenId", 403, AccessDenied),
        ("SignatureDoesNotMatch", 403, AccessDenied),
        ("RegionDisabledException", 403, AccessDenied),
        ("MalformedPolicyDocument", 400, AccessDenied),
        ("PackedPolicyTooLarge", 400, AccessDenied),
        ("ValidationError", 400, AccessDenied),
        ("NewException", 400, AccessDenied),
        ("Throttling", 400, Throttled),
        ("ServiceUnavailable", 503, Unavailable),
        ("InternalFailure", 500, Unavailable),
        ("NewException", 500, Unavailable),
    ],
)
def test_refusal_of_sts_is_told_from_its_outage(
    aws: Aws, make: Providers, code: str, status: int, kind: type[KMSError]
) -> None:
    """Whatever STS has against the request, it is not the caller's request."""
    arn = aws.add_key()
    provider = assuming(make, aws, arn)
    aws.refuse_role(code, status)
    with pytest.raises(KMSError, match="AWS STS") as caught:
        provider.encrypt(str(arn), b"k", CONTEXT)
    assert type(caught.value) is kind
    assert f"{code} for role {ROLE} (request id request-1)" in str(caught.value)
    assert "vendor text" not in str(caught.value)
    assert caught.value.__context__ is None
    assert aws.operations == ["AssumeRole"]
    aws.fault = None
    assert provider.health(str(arn)).ok


def test_unreachable_sts_is_an_outage(aws: Aws, make: Providers) -> None:
    """Nobody listens where the role would be assumed."""
    arn = aws.add_key()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"AWS STS about role {ROLE}") as caught:
            assuming(make, aws, arn, sts_endpoint_url=url).health(str(arn))
    assert type(caught.value) is Unavailable
    assert aws.requests == []


def test_sts_that_hangs_is_given_up(aws: Aws, make: Providers) -> None:
    """The time-outs hold for it too."""
    arn = aws.add_key()
    with StrictAwsServer() as silent:
        silent.gate.hang()
        provider = assuming(
            make, aws, arn, sts_endpoint_url=silent.endpoint_url, attempt_timeout=Duration(0.2)
        )
        with pytest.raises(DeadlineExceeded, match="AWS STS"):
            provider.health(str(arn))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html></html>",
        b"{}",
        b"<AssumeRoleResponse/>",
        b"<R><AssumeRoleResult><Credentials><AccessKeyId>a</AccessKeyId></Credentials>%s</R>"
        % b"</AssumeRoleResult>",
    ],
)
def test_malformed_answer_of_sts_is_an_outage(aws: Aws, make: Providers, body: bytes) -> None:
    """A success without credentials is none."""
    arn = aws.add_key()
    aws.fault, aws.faulty = Response(200, body), "AssumeRole"
    with pytest.raises(Unavailable, match="assume_role"):
        assuming(make, aws, arn).health(str(arn))
    assert aws.operations == ["AssumeRole"]


def test_without_own_credentials_no_role_is_assumed(aws: Aws, make: Providers) -> None:
    """Somebody has to ask for the role."""
    arn = aws.add_key()
    own = {"access_key_id": None, "secret_access_key": None}
    with pytest.raises(AccessDenied, match="NoCredentialsError"):
        assuming(make, aws, arn, **own).health(str(arn))
    assert aws.requests == []


def test_untrusted_sts_is_no_outage(aws: Aws, make: Providers) -> None:
    """A certificate that does not verify will not do so at the next attempt either."""
    arn = aws.add_key()
    with StrictAwsServer(tls=True) as private:
        provider = assuming(make, aws, arn, sts_endpoint_url=private.endpoint_url)
        with pytest.raises(AccessDenied, match="AWS STS was not asked"):
            provider.health(str(arn))
