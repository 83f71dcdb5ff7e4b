"""Connections: limits, credentials, TLS, forks, and what the environment may not change."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kms_aws.connection import Connection
from kms_aws.settings import AwsKmsSettings
from kms_core import (
    AccessDenied,
    Context,
    DeadlineExceeded,
    Duration,
    KMSError,
    Unavailable,
)
from kms_core.testing.servers import StrictAwsServer
from kms_core.testing.servers.http import Response

if TYPE_CHECKING:
    from tests.conftest import Aws, Providers

CONTEXT = Context({"tenant": "42"})
ARN = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
PATIENCE = 15.0  # seconds within which what takes a fraction of one has to be over


@pytest.mark.parametrize("operation", ["encrypt", "health"])
def test_answer_that_breaks_off_is_an_outage_after_one_request(
    aws: Aws, make: Providers, operation: str
) -> None:
    """However an answer fails to arrive, the SDK does not ask again."""
    arn = aws.add_key()
    aws.fault = Response(200, b'{"KeyId": "cut off"}', broken=True)
    every: dict[str, dict[str, Any]] = {"encrypt": {"plaintext": b"k", "context": CONTEXT}}
    with pytest.raises(Unavailable) as caught:
        getattr(make(aws, arn), operation)(key_id=str(arn), **every.get(operation, {}))
    assert type(caught.value) is Unavailable
    assert len(aws.requests) == 1


def test_attempt_timeout_ends_the_wait(aws: Aws, make: Providers) -> None:
    """A service that hangs costs what the configuration allows, not the SDK's minute."""
    arn = aws.add_key()
    aws.gate.hang()
    provider = make(aws, arn, attempt_timeout=Duration(0.2))
    provider.prepare()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="attempt_timeout"):
        provider.health(str(arn))
    assert time.monotonic() - began < PATIENCE
    assert aws.gate.calls == 1


def test_connect_timeout_ends_the_wait(make: Providers) -> None:
    """A host that does not take the connection is given up as well."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # the backlog of one is full now
            provider = make(
                f"http://127.0.0.1:{port}",
                ARN,
                connect_timeout=Duration(0.2),
                attempt_timeout=Duration(0.2),
            )
            with pytest.raises(DeadlineExceeded):
                provider.health(ARN)


def test_refused_connection_is_an_outage(make: Providers) -> None:
    """Nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        provider = make(f"http://127.0.0.1:{unused.getsockname()[1]}", ARN)
        with pytest.raises(Unavailable) as caught:
            provider.health(ARN)
    assert type(caught.value) is Unavailable


# The environment


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS"])
def test_endpoint_variables_are_ignored(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Whoever may set a variable may not move key traffic elsewhere."""
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    settings = AwsKmsSettings(key=ARN)
    connection = Connection(settings)
    assert connection.client().meta.endpoint_url == "https://kms.us-east-1.amazonaws.com"
    connection.close()


def test_endpoint_in_the_configuration_file_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The SDK's own files may not move key traffic either."""
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://127.0.0.1:1\n")
    connection = Connection(AwsKmsSettings(key=ARN))
    assert connection.client().meta.endpoint_url == "https://kms.us-east-1.amazonaws.com"
    connection.close()


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"fips": True}, "https://kms-fips.us-east-1.amazonaws.com"),
        ({"dualstack": True}, "https://kms.us-east-1.api.aws"),
        ({"fips": True, "dualstack": True}, "https://kms-fips.us-east-1.api.aws"),
    ],
)
def test_variants_of_the_endpoint_are_settings(settings: dict[str, bool], url: str) -> None:
    """FIPS and IPv6 are asked for by the configuration."""
    connection = Connection(AwsKmsSettings(key=ARN, **settings))  # type: ignore[arg-type]
    assert connection.client().meta.endpoint_url == url
    connection.close()


@pytest.mark.parametrize("variable", ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"])
def test_variants_of_the_endpoint_are_nothing_else(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A variable changes no address, not even to a better one."""
    monkeypatch.setenv(variable, "true")
    connection = Connection(AwsKmsSettings(key=ARN))
    assert connection.client().meta.endpoint_url == "https://kms.us-east-1.amazonaws.com"
    connection.close()


def test_retry_variables_are_ignored(
    aws: Aws, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One attempt is one attempt, whatever the environment asks for."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    arn = aws.add_key()
    aws.fail_with("ThrottlingException")
    with pytest.raises(KMSError):
        make(aws, arn).health(str(arn))
    assert len(aws.requests) == 1


def test_loopback_goes_around_proxies(
    aws: Aws, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy cannot reach our loopback, and has no business with it."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    arn = aws.add_key()
    assert make(aws, arn).health(str(arn)).ok


def test_limits_reach_the_client() -> None:
    """The client has the time-outs and the pool of the configuration, and no retries."""
    settings = AwsKmsSettings(
        key=ARN,
        connect_timeout=Duration(0.5),
        attempt_timeout=Duration(2.5),
        max_connections=7,
    )
    connection = Connection(settings)
    config = connection.client().meta.config
    assert (config.connect_timeout, config.read_timeout) == (0.5, 2.5)
    assert config.max_pool_connections == 7
    assert config.retries["total_max_attempts"] == 1
    connection.close()


# Credentials


def test_without_credentials_access_is_denied_until_there_are_some(
    aws: Aws, make: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that turn up later are found by the next call."""
    arn = aws.add_key()
    provider = make(aws, arn, access_key_id=None, secret_access_key=None)
    with pytest.raises(AccessDenied, match="NoCredentialsError"):
        provider.health(str(arn))
    write_credentials(tmp_path / "credentials", "default", aws)
    assert provider.health(str(arn)).ok


def test_expired_credentials_are_looked_up_anew(aws: Aws, make: Providers, tmp_path: Path) -> None:
    """After the service called them expired, the next call reads the files again."""
    arn = aws.add_key()
    write_credentials(tmp_path / "credentials", "dev", aws)
    provider = make(aws, arn, profile="dev")
    provider.prepare()
    before = provider._service._connection.client()
    aws.fail_with("ExpiredTokenException")
    with pytest.raises(AccessDenied):
        provider.health(str(arn))
    aws.fault = None
    assert provider.health(str(arn)).ok
    assert provider._service._connection.client() is not before


def test_other_denials_keep_the_client(aws: Aws, make: Providers) -> None:
    """A policy that denies says nothing against the credentials."""
    arn = aws.add_key()
    provider = make(aws, arn)
    before = provider._service._connection.client()
    aws.fail_with("AccessDeniedException")
    with pytest.raises(AccessDenied):
        provider.health(str(arn))
    assert provider._service._connection.client() is before


def test_missing_profile_is_told_when_preparing(make: Providers) -> None:
    """A profile that does not exist is an access problem of this instance."""
    provider = make("http://127.0.0.1:1", ARN, profile="nobody")
    with pytest.raises(AccessDenied, match="ProfileNotFound"):
        provider.prepare()
    with pytest.raises(AccessDenied, match="ProfileNotFound"):
        provider.health(ARN)


def test_unreachable_source_of_credentials_is_an_outage(
    make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container whose credential service is down may recover: that is no denial."""
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/creds")
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    provider = make("http://127.0.0.1:1", ARN, access_key_id=None, secret_access_key=None)
    with pytest.raises(Unavailable, match="CredentialRetrievalError"):
        provider.health(ARN)


def write_credentials(file: Path, profile: str, aws: Aws) -> None:
    """Credentials as the SDK's shared file keeps them."""
    file.write_text(
        f"[{profile}]\naws_access_key_id = {aws.strict.access_key_id}\n"
        f"aws_secret_access_key = {aws.strict.secret_access_key}\n"
    )


# TLS


@pytest.fixture
def private() -> Iterator[StrictAwsServer]:
    """A server whose certificate nobody knows."""
    with StrictAwsServer(tls=True) as server:
        yield server


def test_own_certificate_authority_is_trusted(private: StrictAwsServer, make: Providers) -> None:
    """``ca_file`` lets a private endpoint be verified."""
    arn = private.create_key()
    assert make(private, arn, insecure=False, ca_file=private.ca_file).health(arn).ok


def test_untrusted_certificate_is_no_outage(private: StrictAwsServer, make: Providers) -> None:
    """A certificate that does not verify will not do so at the next attempt either."""
    arn = private.create_key()
    with pytest.raises(AccessDenied, match="ca_file"):
        make(private, arn).health(arn)
    assert private.requests == []


def test_tls_spoken_to_a_plain_server_is_an_outage(aws: Aws, make: Providers) -> None:
    """Any other trouble of a handshake is the network's."""
    arn = aws.add_key()
    with pytest.raises(Unavailable) as caught:
        make(aws.endpoint_url.replace("http:", "https:"), arn).health(str(arn))
    assert type(caught.value) is Unavailable


# One client, many threads and processes


def test_threads_share_one_client() -> None:
    """Whoever comes first builds it; sessions are not safe to be used by two."""
    connection = Connection(AwsKmsSettings(key=ARN))
    start, clients = threading.Barrier(8), []

    def work() -> None:
        start.wait(30)
        clients.append(connection.client())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clients) == 8
    assert len(set(map(id, clients))) == 1
    connection.close()


def test_connections_are_reused(aws: Aws, make: Providers) -> None:
    """Calls in a row share a connection: one that was opened before the door was shut."""
    arn = aws.add_key()
    provider = make(aws, arn)
    client = provider._service._connection.client()
    for _ in range(5):
        provider.health(str(arn))
    manager = client._endpoint.http_session._manager
    (pool,) = (manager.pools[key] for key in manager.pools.keys())  # noqa: SIM118  no mapping
    assert (pool.num_connections, pool.num_requests) == (1, 5)


def test_child_builds_its_own_client_even_if_the_lock_was_held() -> None:
    """A fork in the middle of a build leaves the child neither the lock nor the client."""
    connection = Connection(AwsKmsSettings(key=ARN))
    before = connection.client()
    with connection._held.lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if connection.client() is not before else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert connection.client() is before
    connection.close()


def test_close_ends_the_connections(aws: Aws, make: Providers) -> None:
    """The sockets are closed, closing again changes nothing, and a late call still works."""
    arn = aws.add_key()
    provider = make(aws, arn)
    provider.health(str(arn))
    provider.close()
    provider.close()
    assert provider.health(str(arn)).ok


def test_close_before_use_builds_nothing() -> None:
    """An instance that never worked has nothing to close."""
    connection = Connection(AwsKmsSettings(key=ARN))
    connection.close()
    assert connection._held.clients is None
